// The gradients of relu(maxpool2x2(conv5x5(x) + bias)) with respect to x (if wanted), weight and bias.
//
// Why it is fast: of the four positions of a pooling window only the winner carries gradient, and none if relu was
// dead, so at least three quarters of the convolution's gradient is zero. The work runs over lists of the rest.
// For an output channel o with gradient g at position (y, x) of the convolution's output:
//     grad_weight[o]                      += g * image[y .. y + 4][x .. x + 4]
//     grad_image[y .. y + 4][x .. x + 4]  += g * weight[o]
// Image and weight are kept channels-last here, so a row of five taps is 5 * in_channels floats in one run and both
// lines are the same operation on 5 such runs: add_patches.
#pragma once

#include <cstring>

#include "scratch.h"
#include "vectors.h"

namespace fused {

// Vectors of each of the 5 rows that add_patches keeps in registers: 20 sums of 32 registers, or 10 of 16.
constexpr int kPatchColumns = kRegisters == 32 ? 4 : 2;

struct BackwardLayout {
  int image_pitch;    // floats of a padded row of pixels
  int image_floats;   // of a padded image, with room for the last vector of a patch to run over
  int patch_vectors;  // that cover the 5 * in_channels floats of a patch's row
  int patch_pitch;    // floats of them
  int patch_floats;   // of the 5 rows

  explicit BackwardLayout(const Shape& shape) {
    image_pitch = (shape.width + kKernel - 1) * shape.in_channels;
    image_floats = (shape.height + kKernel - 1) * image_pitch + kLanes;
    patch_pitch = round_up(kKernel * shape.in_channels, kLanes);
    patch_vectors = patch_pitch / kLanes;
    patch_floats = kKernel * patch_pitch;
  }
};

// target[5][Columns] += sum over i of scale[i] * source[offset[i]][5][Columns], in vectors.
// One column has only five sums, too few to hide how long an addition takes: it uses two sets of them.
template <int Columns>
static void add_patch_columns(float* target, int target_pitch, const float* source, int source_pitch,
                              const int* offset, const float* scale, int count) {
  constexpr int kSets = Columns == 1 ? 2 : 1;
  Vector sum[kSets][kKernel][Columns];
  FUSED_UNROLL
  for (int r = 0; r < kKernel; r++) {
    FUSED_UNROLL
    for (int v = 0; v < Columns; v++) {
      sum[0][r][v] = load(target + r * target_pitch + v * kLanes);
      if (kSets == 2) sum[kSets - 1][r][v] = Vector{};
    }
  }
  const auto add = [&](int set, int i) __attribute__((always_inline)) {
    const float* patch = source + offset[i];
    FUSED_UNROLL
    for (int r = 0; r < kKernel; r++) {
      FUSED_UNROLL
      for (int v = 0; v < Columns; v++) sum[set][r][v] += load(patch + r * source_pitch + v * kLanes) * scale[i];
    }
  };
  int i = 0;
  for (; i + kSets <= count; i += kSets) {
    FUSED_UNROLL
    for (int set = 0; set < kSets; set++) add(set, i + set);
  }
  for (; i < count; i++) add(0, i);
  FUSED_UNROLL
  for (int r = 0; r < kKernel; r++) {
    FUSED_UNROLL
    for (int v = 0; v < Columns; v++) {
      const Vector total = kSets == 2 ? sum[0][r][v] + sum[kSets - 1][r][v] : sum[0][r][v];
      store(target + r * target_pitch + v * kLanes, total);
    }
  }
}

// The same for patches of any width.
static inline void add_patches(int vectors, float* target, int target_pitch, const float* source, int source_pitch,
                               const int* offset, const float* scale, int count) {
  for (int v = 0; v < vectors; v += kPatchColumns) {
    float* to = target + v * kLanes;
    const float* from = source + v * kLanes;
    const int left = vectors - v;
    if (left >= kPatchColumns)
      add_patch_columns<kPatchColumns>(to, target_pitch, from, source_pitch, offset, scale, count);
    else if (left == 3)
      add_patch_columns<3>(to, target_pitch, from, source_pitch, offset, scale, count);
    else if (left == 2)
      add_patch_columns<2>(to, target_pitch, from, source_pitch, offset, scale, count);
    else
      add_patch_columns<1>(to, target_pitch, from, source_pitch, offset, scale, count);
  }
}

// The weight channels-last, [out_channels][5 rows][patch_pitch: 5 columns x in_channels, then zeros].
struct BackwardShared {
  float* weight;

  BackwardShared(const Shape& shape, Slices& slices) {
    weight = slices.take<float>((size_t)shape.out_channels * BackwardLayout(shape).patch_floats);
  }
  void pack(const Shape& shape, const float* from) const {
    const BackwardLayout layout(shape);
    std::memset(weight, 0, (size_t)shape.out_channels * layout.patch_floats * sizeof(float));
    for (int o = 0; o < shape.out_channels; o++)
      for (int c = 0; c < shape.in_channels; c++)
        for (int ky = 0; ky < kKernel; ky++)
          for (int kx = 0; kx < kKernel; kx++)
            weight[(size_t)o * layout.patch_floats + ky * layout.patch_pitch + kx * shape.in_channels + c] = *from++;
  }
};

// A thread's own sums over its images, added up in the order of the threads at the end: equal bits at every run.
struct BackwardThread {
  float *grad_weight, *grad_bias;  // [out_channels][patch_floats], [out_channels][kLanes: partial sums]
  float *image, *grad_image;       // [height + 4][width + 4][in_channels]
  int* offset;                     // one output channel's live windows: where their patch begins in the image
  float* scale;                    //   and the gradient there
  int* bucket_size;                // the same gradients by position: a row of windows, [5 members][pooled_width],
  int* bucket_offset;              //   [5][pooled_width][out_channels] where the channel's weight begins
  float* bucket_scale;             //   and the gradient; member kDead is a bin that nobody reads

  BackwardThread(const Shape& shape, Slices& slices) {
    const BackwardLayout layout(shape);
    const size_t buckets = (size_t)(kDead + 1) * shape.pooled_width();
    grad_weight = slices.take<float>((size_t)shape.out_channels * layout.patch_floats);
    grad_bias = slices.take<float>((size_t)shape.out_channels * kLanes);
    image = slices.take<float>(layout.image_floats);
    grad_image = slices.take<float>(layout.image_floats);
    offset = slices.take<int>(shape.pooled_area());
    scale = slices.take<float>(shape.pooled_area() + kLanes);
    bucket_size = slices.take<int>(buckets);
    bucket_offset = slices.take<int>(buckets * shape.out_channels);
    bucket_scale = slices.take<float>(buckets * shape.out_channels);
  }
  void clear(const Shape& shape, const BackwardLayout& layout) const {
    std::memset(grad_weight, 0, (size_t)shape.out_channels * layout.patch_floats * sizeof(float));
    std::memset(grad_bias, 0, (size_t)shape.out_channels * kLanes * sizeof(float));
    std::memset(image, 0, layout.image_floats * sizeof(float));
  }
};

// Where pixel (y, x) of the unpadded image lies in a padded channels-last image.
static inline size_t pixel(const Shape& shape, const BackwardLayout& layout, int y, int x) {
  return (size_t)(y + kPad) * layout.image_pitch + (x + kPad) * shape.in_channels;
}

static void to_channels_last(const Shape& shape, const BackwardLayout& layout, const float* x, float* image) {
  for (int y = 0; y < shape.height; y++)
    for (int c = 0; c < shape.in_channels; c++) {
      float* to = image + pixel(shape, layout, y, 0) + c;
      const float* from = x + ((size_t)c * shape.height + y) * shape.width;
      for (int i = 0; i < shape.width; i++) to[i * shape.in_channels] = from[i];
    }
}

static void to_channels_first(const Shape& shape, const BackwardLayout& layout, const float* image, float* x) {
  for (int c = 0; c < shape.in_channels; c++)
    for (int y = 0; y < shape.height; y++) {
      const float* from = image + pixel(shape, layout, y, 0) + c;
      float* to = x + ((size_t)c * shape.height + y) * shape.width;
      for (int i = 0; i < shape.width; i++) to[i] = from[i * shape.in_channels];
    }
}

// The lists below are filled through local names: a store to an int could otherwise change a shape, for all the compiler
// knows, which it would then read again for every window.

// grad_weight and grad_bias of one output channel of one image.
static void backward_channel(const Shape& shape, const BackwardLayout& layout, const BackwardThread& mine, int channel,
                             const float* grad, const int8_t* winner) {
  const int channels = shape.in_channels, pitch = layout.image_pitch;
  const int height = shape.pooled_height(), width = shape.pooled_width();
  const int member_at[kDead + 1] = {0, channels, pitch, pitch + channels, 0};
  int* const offset = mine.offset;
  float* const scale = mine.scale;
  int live = 0;
  for (int py = 0, window = 0; py < height; py++)
    for (int px = 0; px < width; px++, window++) {
      // No branch, which would be mispredicted: a dead window is written too, and overwritten by the next one.
      offset[live] = 2 * (py * pitch + px * channels) + member_at[winner[window]];
      scale[live] = grad[window];
      live += winner[window] != kDead;
    }
  store(scale + live, Vector{});  // so that the bias can add whole vectors
  Vector bias = load(mine.grad_bias + channel * kLanes);
  for (int i = 0; i < live; i += kLanes) bias += load(scale + i);
  store(mine.grad_bias + channel * kLanes, bias);
  add_patches(layout.patch_vectors, mine.grad_weight + (size_t)channel * layout.patch_floats, layout.patch_pitch,
              mine.image, pitch, offset, scale, live);
}

// Sorts the gradients of one row of windows by the position they belong to: there, all channels add to one patch.
static void fill_buckets(const Shape& shape, const BackwardLayout& layout, const BackwardThread& mine, int py,
                         const float* grad, const int8_t* winner) {
  const int width = shape.pooled_width(), area = shape.pooled_area(), channels = shape.out_channels;
  const int patch_floats = layout.patch_floats;
  int *const size = mine.bucket_size, *const offset = mine.bucket_offset;
  float* const scale = mine.bucket_scale;
  std::memset(size, 0, (kDead + 1) * width * sizeof(int));
  for (int o = 0; o < channels; o++)
    for (int px = 0; px < width; px++) {
      const size_t at = (size_t)o * area + py * width + px;
      const int bucket = winner[at] * width + px;
      const size_t entry = (size_t)bucket * channels + size[bucket]++;
      offset[entry] = o * patch_floats;
      scale[entry] = grad[at];
    }
}

// grad_x of one image.
static void backward_input(const Shape& shape, const BackwardLayout& layout, const BackwardShared& shared,
                           const BackwardThread& mine, const float* grad, const int8_t* winner, float* grad_x) {
  constexpr int kApart = 3;  // windows 3 apart have patches that do not meet: no waiting for the last one's stores
  const int width = shape.pooled_width();
  std::memset(mine.grad_image, 0, layout.image_floats * sizeof(float));
  for (int py = 0; py < shape.pooled_height(); py++) {
    fill_buckets(shape, layout, mine, py, grad, winner);
    for (int member = 0; member < kDead; member++)
      for (int first = 0; first < kApart; first++)
        for (int px = first; px < width; px += kApart) {
          const int bucket = member * width + px, count = mine.bucket_size[bucket];
          if (count == 0) continue;
          const size_t entries = (size_t)bucket * shape.out_channels;
          float* patch = mine.grad_image + (2 * py + member / 2) * layout.image_pitch +
                         (2 * px + member % 2) * shape.in_channels;
          add_patches(layout.patch_vectors, patch, layout.image_pitch, shared.weight, layout.patch_pitch,
                      mine.bucket_offset + entries, mine.bucket_scale + entries, count);
        }
  }
  to_channels_first(shape, layout, mine.grad_image, grad_x);
}

// grad_weight [out_channels][in_channels][5][5] and grad_bias from the sums of the threads.
static void add_threads(const Shape& shape, const Scratch<BackwardShared, BackwardThread>& scratch, int threads,
                        float* grad_weight, float* grad_bias) {
  const BackwardLayout layout(shape);
  for (int t = 0; t < threads; t++) {
    const BackwardThread mine = scratch.of_thread(t);
    float* to = grad_weight;
    for (int o = 0; o < shape.out_channels; o++) {
      if (t == 0) grad_bias[o] = 0.f;
      for (int lane = 0; lane < kLanes; lane++) grad_bias[o] += mine.grad_bias[o * kLanes + lane];
      for (int c = 0; c < shape.in_channels; c++)
        for (int ky = 0; ky < kKernel; ky++)
          for (int kx = 0; kx < kKernel; kx++, to++)
            *to = (t == 0 ? 0.f : *to) + mine.grad_weight[(size_t)o * layout.patch_floats + ky * layout.patch_pitch +
                                                          kx * shape.in_channels + c];
    }
  }
}

// False where no working memory could be had; nothing is written then. grad_x may be null.
static bool backward(const Shape& shape, const float* x, const float* weight, const int8_t* winner,
                     const float* grad_out, float* grad_x, float* grad_weight, float* grad_bias) {
  const int threads = team_size(shape);
  const Scratch<BackwardShared, BackwardThread> scratch(shape, threads);
  if (!scratch.allocated()) return false;
  const BackwardLayout layout(shape);
  const BackwardShared shared = scratch.shared();
  if (grad_x != nullptr) shared.pack(shape, weight);
  int team = 1;  // the runtime may grant fewer threads than asked for
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0) team = omp_get_num_threads();
    const BackwardThread mine = scratch.of_thread(thread);
    mine.clear(shape, layout);
#pragma omp for schedule(static)
    for (int n = 0; n < shape.images; n++) {
      const float* grad = grad_out + n * shape.out_image();
      const int8_t* won = winner + n * shape.out_image();
      to_channels_last(shape, layout, x + n * shape.in_image(), mine.image);
      for (int o = 0; o < shape.out_channels; o++) {
        const size_t plane = (size_t)o * shape.pooled_area();
        backward_channel(shape, layout, mine, o, grad + plane, won + plane);
      }
      if (grad_x != nullptr)
        backward_input(shape, layout, shared, mine, grad, won, grad_x + n * shape.in_image());
    }
  }
  add_threads(shape, scratch, team, grad_weight, grad_bias);
  return true;
}

}  // namespace fused
