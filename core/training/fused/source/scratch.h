// Shapes, threads and working memory, shared by the two directions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>

#include <cstring>
#endif

// Declared here because clang often comes without <omp.h>; the names are part of the OpenMP standard.
#if defined(_OPENMP)
extern "C" {
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
}
#else
static inline int omp_get_max_threads() { return 1; }
static inline int omp_get_num_threads() { return 1; }
static inline int omp_get_thread_num() { return 0; }
#endif

namespace fused {

constexpr int kKernel = 5, kPad = 2, kTaps = kKernel * kKernel;

// The `winner` of a pooling window: 0..3 is its largest member in scan order (00 01 10 11); kDead means that relu let
// nothing through, so no gradient comes back.
constexpr int kDead = 4;

// x [images][in_channels][height][width], weight [out_channels][in_channels][5][5], bias [out_channels],
// out and winner [images][out_channels][height / 2][width / 2]. Height and width are even.
struct Shape {
  int images, in_channels, height, width, out_channels;

  int pooled_height() const { return height / 2; }
  int pooled_width() const { return width / 2; }
  int pooled_area() const { return pooled_height() * pooled_width(); }
  size_t in_image() const { return (size_t)in_channels * height * width; }
  size_t out_image() const { return (size_t)out_channels * pooled_area(); }
};

static inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Threads to work with: never more than images, because an image is the unit of work.
static inline int team_size(const Shape& shape) {
  const int most = omp_get_max_threads();
  return shape.images < most ? (shape.images > 0 ? shape.images : 1) : most;
}

// Slices of one block of memory, each on a cache line of its own (results move by 10-20 % without that). Without a
// block it only counts, so the same code first plans a layout and then carves it.
class Slices {
 public:
  explicit Slices(char* block) : block_(block) {}

  template <class T>
  T* take(size_t count) {
    const size_t at = used_, bytes = count * sizeof(T);
    used_ += (bytes + kLine - 1) / kLine * kLine + kGuard;
    if (block_ == nullptr) return nullptr;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(block_ + at + bytes, used_ - at - bytes);
#endif
    return reinterpret_cast<T*>(block_ + at);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kLine = 64;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGuard = 64;  // a step over the end of a slice is reported, not hidden by the next slice
#else
  static constexpr size_t kGuard = 0;
#endif
  char* block_;
  size_t used_ = 0;
};

// All working memory of one call: a part that the threads share and one part for each thread. It belongs to the call,
// so calls from several threads never meet, and nothing is kept between calls. Its size follows one image, not the
// batch. Shared and PerThread are constructed from (shape, Slices&).
template <class Shared, class PerThread>
class Scratch {
 public:
  Scratch(const Shape& shape, int threads) : shape_(shape) {
    Slices shared(nullptr), one(nullptr);
    Shared(shape, shared);
    PerThread(shape, one);
    shared_bytes_ = shared.used();
    thread_bytes_ = one.used();
    const size_t bytes = shared_bytes_ + thread_bytes_ * threads;
    if (posix_memalign(reinterpret_cast<void**>(&block_), 64, bytes) != 0) block_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    if (block_ != nullptr) std::memset(block_, 0xFF, bytes);  // NaN: what is read before it is written shows
#endif
  }
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool allocated() const { return block_ != nullptr; }
  Shared shared() const {
    Slices slices(block_);
    return Shared(shape_, slices);
  }
  PerThread of_thread(int thread) const {
    Slices slices(block_ + shared_bytes_ + thread_bytes_ * thread);
    return PerThread(shape_, slices);
  }

 private:
  Shape shape_;
  size_t shared_bytes_ = 0, thread_bytes_ = 0;
  char* block_ = nullptr;
};

}  // namespace fused
