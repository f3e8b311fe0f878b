// The fused kernel against sums written out in double, on shapes that no tile fits. Meant to be built with the address
// and undefined-behaviour sanitizers (`make check-native`): every array has exactly its size, so that a step outside is
// seen, and under the sanitizers working memory starts as NaN and its parts lie between guards.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

extern "C" {
int fused_forward(int, int, int, int, int, const float*, const float*, const float*, float*, int8_t*);
int fused_backward(int, int, int, int, int, const float*, const float*, const int8_t*, const float*, float*, float*,
                   float*);
}

namespace {

struct Case {
  const char* what;
  int images, in_channels, height, width, out_channels;
};

const Case kCases[] = {
    {"the smallest image", 1, 1, 2, 2, 1},         {"the first layer", 3, 1, 28, 28, 20},
    {"the second layer", 3, 20, 14, 14, 20},       {"odd channels", 2, 3, 4, 6, 7},
    {"more odd channels", 5, 7, 6, 10, 13},        {"one row of windows", 2, 2, 2, 70, 3},
    {"one column of windows", 2, 2, 70, 2, 3},     {"a vector of columns", 1, 2, 4, 16, 11},
    {"just over a vector", 1, 2, 4, 18, 11},       {"just over two vectors", 1, 3, 8, 34, 5},
    {"many channels", 2, 33, 4, 4, 21},            {"one channel to many", 2, 1, 6, 6, 64},
    {"many channels to one", 2, 64, 6, 6, 1},      {"more images than threads", 9, 2, 4, 4, 4},
    {"columns left over: 1, 2, 3", 2, 4, 4, 4, 6}, {"columns left over, wider", 2, 10, 4, 4, 6},
};

// An array of exactly its size on the heap, 4-byte aligned as the kernel allows.
template <class T>
struct Array {
  explicit Array(size_t count) : size(count), data(new T[count]) {}
  T& operator[](size_t i) const { return data[i]; }
  size_t size;
  std::unique_ptr<T[]> data;
};

void fill(const Array<float>& array, std::mt19937& random, bool ties) {
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < array.size; i++) array[i] = ties ? std::round(normal(random)) : normal(random);
}

int failures = 0;

// float32 sums of `terms` products of size about 1, added in another order.
void compare(const Case& test, const char* name, const Array<float>& got, const std::vector<double>& expected,
             double terms) {
  const double tolerance = 1e-6 * std::sqrt(terms) * 8;
  for (size_t i = 0; i < got.size; i++)
    if (!(std::fabs(got[i] - expected[i]) <= tolerance)) {
      std::printf("FAILED %s: %s[%zu] is %.9g, expected %.9g\n", test.what, name, i, got[i], expected[i]);
      failures++;
      return;
    }
}

// One case; `ties` makes small integers, whose sums are exact, so that many windows have several maxima.
void check(const Case& test, bool ties, bool wants_x) {
  const int N = test.images, C = test.in_channels, H = test.height, W = test.width, O = test.out_channels;
  const int windows = H / 2 * (W / 2);
  std::mt19937 random(1);
  const Array<float> x(size_t(N) * C * H * W), weight(size_t(O) * C * 25), bias(O), grad(size_t(N) * O * windows);
  for (const Array<float>* array : {&x, &weight, &bias, &grad}) fill(*array, random, ties);
  const Array<float> out(grad.size), grad_x(x.size), grad_weight(weight.size), grad_bias(bias.size);
  const Array<int8_t> winner(grad.size);
  for (const Array<float>* array : {&out, &grad_x, &grad_weight, &grad_bias})
    for (size_t i = 0; i < array->size; i++) (*array)[i] = std::numeric_limits<float>::quiet_NaN();

  const int failed = fused_forward(N, C, H, W, O, &x[0], &weight[0], &bias[0], &out[0], &winner[0]) ||
                     fused_backward(N, C, H, W, O, &x[0], &weight[0], &winner[0], &grad[0],
                                    wants_x ? &grad_x[0] : nullptr, &grad_weight[0], &grad_bias[0]);
  if (failed) {
    std::printf("FAILED %s: no memory\n", test.what);
    failures++;
    return;
  }

  std::vector<double> pooled(out.size, 0.), to_x(x.size, 0.), to_weight(weight.size, 0.), to_bias(O, 0.);
  for (size_t at = 0; at < out.size; at++) {
    const int n = at / (size_t(O) * windows), o = at / windows % O, window = at % windows;
    const int top = window / (W / 2) * 2, left = window % (W / 2) * 2;
    double sums[4];
    const auto each_tap = [&](int member, auto&& visit) {
      for (int c = 0; c < C; c++)
        for (int k = 0; k < 25; k++) {
          const int y = top + member / 2 + k / 5 - 2, across = left + member % 2 + k % 5 - 2;
          if (y < 0 || y >= H || across < 0 || across >= W) continue;
          visit(((size_t(n) * C + c) * H + y) * W + across, (size_t(o) * C + c) * 25 + k);
        }
    };
    int best = 4;  // none: relu lets nothing through
    for (int member = 0; member < 4; member++) {
      double& sum = sums[member] = bias[o];
      each_tap(member, [&](size_t pixel, size_t tap) { sum += double(x[pixel]) * weight[tap]; });
      if (sum > pooled[at]) pooled[at] = sum, best = member;
    }
    // Where float32 cannot tell two members apart, either may win; with exact sums the first must.
    if (winner[at] != best) {
      const double theirs = winner[at] == 4 ? 0. : sums[winner[at]];
      if (ties || std::fabs(theirs - pooled[at]) > 1e-5 * std::sqrt(25. * C)) {
        std::printf("FAILED %s: winner[%zu] is %d, expected %d\n", test.what, at, winner[at], best);
        failures++;
        return;
      }
    }
    if (winner[at] == 4) continue;
    to_bias[o] += grad[at];
    each_tap(winner[at], [&](size_t pixel, size_t tap) {
      to_x[pixel] += double(grad[at]) * weight[tap];
      to_weight[tap] += double(grad[at]) * x[pixel];
    });
  }
  compare(test, "out", out, pooled, 25. * C);
  compare(test, "grad_weight", grad_weight, to_weight, double(N) * windows);
  compare(test, "grad_bias", grad_bias, to_bias, double(N) * windows);
  if (wants_x) compare(test, "grad_x", grad_x, to_x, 25. * O);
}

}  // namespace

int main() {
  int checked = 0;
  for (const Case& test : kCases)
    for (const bool ties : {false, true})
      for (const bool wants_x : {false, true}) {
        check(test, ties, wants_x);
        checked++;
      }
  std::printf("%d passed, %d failed\n", checked - failures, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
