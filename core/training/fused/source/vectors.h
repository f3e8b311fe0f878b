// The vector of floats of this build, and the few operations on it that differ between compilers.
//
// The kernel is written once, in the vector extensions that GCC and clang share. The instruction set it is compiled for
// decides only two numbers: how many floats a register holds and how many registers there are. The vector must be
// exactly one register wide: a 64-byte vector compiled for AVX2 is split in memory and 15 times slower.
#pragma once

#include <cstdint>
#include <utility>

namespace fused {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// The same vectors at any address: rows of an image start anywhere.
typedef float UnalignedVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int8_t UnalignedBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

static inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
static inline void store(float* to, Vector values) { *reinterpret_cast<UnalignedVector*>(to) = values; }
static inline void store(int8_t* to, Integers values) {
  *reinterpret_cast<UnalignedBytes*>(to) = __builtin_convertvector(values, Bytes);
}

// A tile of sums stays in registers only if every loop over it is unrolled completely.
#if defined(__clang__)
#define FUSED_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FUSED_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FUSED_SHUFFLEVECTOR 1
#endif
#endif

// Lanes First, First + 2, First + 4, ... of the 2 * kLanes floats in `low` and `high`.
template <int First, int... Lane>
static inline Vector every_second(Vector low, Vector high, std::integer_sequence<int, Lane...>) {
#if defined(FUSED_SHUFFLEVECTOR)
  return __builtin_shufflevector(low, high, (First + 2 * Lane)...);
#else  // GCC before 12
  return __builtin_shuffle(low, high, Integers{(First + 2 * Lane)...});
#endif
}
static inline Vector even_lanes(Vector low, Vector high) {
  return every_second<0>(low, high, std::make_integer_sequence<int, kLanes>());
}
static inline Vector odd_lanes(Vector low, Vector high) {
  return every_second<1>(low, high, std::make_integer_sequence<int, kLanes>());
}

}  // namespace fused
