// out = relu(maxpool2x2(conv5x5(x, pad 2, stride 1) + bias)) and the winner of every pooling window.
//
// Why it is fast: a tile of sums (some output channels x 2 rows x one or two vectors of columns) stays in registers
// through all input channels and taps, so each load of the image serves every channel of the tile. Two rows are just
// what a row of pooling windows needs: pool and relu happen on the registers, and the convolution's output, four times
// the size of the result, never reaches memory.
#pragma once

#include <cstring>

#include "scratch.h"
#include "vectors.h"

namespace fused {

// The tiles: 20 of 32 registers hold sums, or 10 of 16; the rest holds the image and the weight.
// A wide tile pools two vectors of columns into one full vector; a narrow one leaves half of it unused.
constexpr int kNarrowChannels = kRegisters == 32 ? 10 : 5;
constexpr int kWideChannels = 5;

// Wide where it pads the rows no further than narrow would (28 columns of 16 lanes: 32 either way; 14 columns: 32, 16).
static inline bool wide_tiles(const Shape& shape) {
  return kRegisters == 32 && round_up(shape.width, 2 * kLanes) == round_up(shape.width, kLanes);
}

struct ForwardLayout {
  int channels, columns;  // of a tile: output channels, vectors
  int tiles;              // that cover the output channels
  int pitch, plane;       // floats of a padded row, of a padded channel
  int pooled_plane;       // of one output channel, with room for the last vector to run over

  explicit ForwardLayout(const Shape& shape) {
    const bool wide = wide_tiles(shape);
    channels = wide ? kWideChannels : kNarrowChannels;
    columns = wide ? 2 : 1;
    tiles = (shape.out_channels + channels - 1) / channels;
    pitch = round_up(shape.width, columns * kLanes) + kKernel - 1;
    plane = (shape.height + kKernel - 1) * pitch;
    pooled_plane = shape.pooled_area() + kLanes;
  }
  int tile_weights(const Shape& shape) const { return shape.in_channels * kTaps * channels; }
};

// Weights in the order the tiles read them, [tile][in_channels][5][5][channels], and the bias [tile][channels]; the
// channels that fill the last tile are zero.
struct ForwardShared {
  float *weight, *bias;

  ForwardShared(const Shape& shape, Slices& slices) {
    const ForwardLayout layout(shape);
    weight = slices.take<float>((size_t)layout.tiles * layout.tile_weights(shape));
    bias = slices.take<float>((size_t)layout.tiles * layout.channels);
  }
  void pack(const Shape& shape, const float* from_weight, const float* from_bias) const {
    const ForwardLayout layout(shape);
    const int taps = shape.in_channels * kTaps;
    for (int o = 0; o < layout.tiles * layout.channels; o++) {
      const bool real = o < shape.out_channels;
      float* to = weight + (size_t)(o / layout.channels) * layout.tile_weights(shape) + o % layout.channels;
      for (int t = 0; t < taps; t++) to[(size_t)t * layout.channels] = real ? from_weight[(size_t)o * taps + t] : 0.f;
      bias[o] = real ? from_bias[o] : 0.f;
    }
  }
};

// One image with its border of zeros, [in_channels][height + 4][pitch], and the results of one tile,
// [channels][pooled_plane]: vectors run over the end of a row there and the next row puts that right.
struct ForwardThread {
  float *image, *out;
  int8_t* winner;
  size_t image_floats;

  ForwardThread(const Shape& shape, Slices& slices) {
    const ForwardLayout layout(shape);
    image_floats = (size_t)shape.in_channels * layout.plane;
    image = slices.take<float>(image_floats);
    out = slices.take<float>((size_t)layout.channels * layout.pooled_plane);
    winner = slices.take<int8_t>((size_t)layout.channels * layout.pooled_plane);
  }
  void clear_border() const { std::memset(image, 0, image_floats * sizeof(float)); }
  void fill(const Shape& shape, const ForwardLayout& layout, const float* x) const {
    for (int c = 0; c < shape.in_channels; c++)
      for (int y = 0; y < shape.height; y++)
        std::memcpy(image + (size_t)c * layout.plane + (y + kPad) * layout.pitch + kPad,
                    x + ((size_t)c * shape.height + y) * shape.width, shape.width * sizeof(float));
  }
};

// The relu and the pool of kLanes windows at once, one member of every window in each vector. Both are one running
// maximum that starts at zero. "Greater" makes the first maximum win and never takes a NaN, as Paddle's operators do.
static inline void pool(const Vector (&member)[4], float* out, int8_t* winner) {
  Vector best = {};
  Integers best_member = Integers{} + kDead;
  FUSED_UNROLL
  for (int m = 0; m < 4; m++) {
    const Integers greater = member[m] > best;
    best = greater ? member[m] : best;
    best_member = greater ? Integers{} + m : best_member;
  }
  store(out, best);
  store(winner, best_member);
}

// One tile: `image` points at its upper left tap, `out` and `winner` at its first window.
template <int Channels, int Columns>
static void forward_tile(const ForwardLayout& layout, int in_channels, const float* image, const float* weight,
                         const float* bias, float* out, int8_t* winner) {
  Vector sum[Channels][2][Columns];
  FUSED_UNROLL
  for (int o = 0; o < Channels; o++) {
    FUSED_UNROLL
    for (int v = 0; v < Columns; v++) sum[o][0][v] = sum[o][1][v] = Vector{} + bias[o];
  }

  for (int c = 0; c < in_channels; c++) {
    for (int ky = 0; ky < kKernel; ky++) {
      const float* row = image + (size_t)c * layout.plane + ky * layout.pitch;
      for (int kx = 0; kx < kKernel; kx++, row++, weight += Channels) {
        Vector upper[Columns], lower[Columns];
        FUSED_UNROLL
        for (int v = 0; v < Columns; v++) {
          upper[v] = load(row + v * kLanes);
          lower[v] = load(row + layout.pitch + v * kLanes);
        }
        FUSED_UNROLL
        for (int o = 0; o < Channels; o++) {
          FUSED_UNROLL
          for (int v = 0; v < Columns; v++) {
            sum[o][0][v] += upper[v] * weight[o];
            sum[o][1][v] += lower[v] * weight[o];
          }
        }
      }
    }
  }

  FUSED_UNROLL
  for (int o = 0; o < Channels; o++) {
    constexpr int kLast = Columns - 1;
    const Vector member[4] = {even_lanes(sum[o][0][0], sum[o][0][kLast]), odd_lanes(sum[o][0][0], sum[o][0][kLast]),
                              even_lanes(sum[o][1][0], sum[o][1][kLast]), odd_lanes(sum[o][1][0], sum[o][1][kLast])};
    pool(member, out + (size_t)o * layout.pooled_plane, winner + (size_t)o * layout.pooled_plane);
  }
}

// All tiles of one image. Rows and columns go up, so that what a vector writes past its row is overwritten.
template <int Channels, int Columns>
static void forward_image(const Shape& shape, const ForwardLayout& layout, const ForwardShared& shared,
                          const ForwardThread& mine, float* out, int8_t* winner) {
  const int area = shape.pooled_area();
  for (int tile = 0; tile < layout.tiles; tile++) {
    const int first = tile * Channels;
    for (int y = 0; y < shape.height; y += 2)
      for (int x = 0; x < shape.width; x += Columns * kLanes) {
        const int window = y / 2 * shape.pooled_width() + x / 2;
        forward_tile<Channels, Columns>(layout, shape.in_channels, mine.image + y * layout.pitch + x,
                                        shared.weight + (size_t)tile * layout.tile_weights(shape), shared.bias + first,
                                        mine.out + window, mine.winner + window);
      }
    for (int o = 0; o < Channels && first + o < shape.out_channels; o++) {
      std::memcpy(out + (size_t)(first + o) * area, mine.out + (size_t)o * layout.pooled_plane, area * sizeof(float));
      std::memcpy(winner + (size_t)(first + o) * area, mine.winner + (size_t)o * layout.pooled_plane, area);
    }
  }
}

// False where no working memory could be had; nothing is written then.
static bool forward(const Shape& shape, const float* x, const float* weight, const float* bias, float* out,
                    int8_t* winner) {
  const int threads = team_size(shape);
  const Scratch<ForwardShared, ForwardThread> scratch(shape, threads);
  if (!scratch.allocated()) return false;
  const ForwardLayout layout(shape);
  const ForwardShared shared = scratch.shared();
  shared.pack(shape, weight, bias);
#pragma omp parallel num_threads(threads)
  {
    const ForwardThread mine = scratch.of_thread(omp_get_thread_num());
    mine.clear_border();
#pragma omp for schedule(static)
    for (int n = 0; n < shape.images; n++) {
      mine.fill(shape, layout, x + n * shape.in_image());
      const size_t at = n * shape.out_image();
      if (layout.columns == 2)
        forward_image<kWideChannels, 2>(shape, layout, shared, mine, out + at, winner + at);
      else
        forward_image<kNarrowChannels, 1>(shape, layout, shared, mine, out + at, winner + at);
    }
  }
  return true;
}

}  // namespace fused
