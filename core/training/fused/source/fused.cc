// The C entry points, called through ctypes. All arrays are float32 and contiguous, laid out as scratch.h says at
// Shape; height and width are even, and no padded image, patch list or weight has 2^31 floats or more. Both return 0,
// or 1 where no working memory could be had.
#include "backward.h"
#include "forward.h"

extern "C" {

int fused_forward(int images, int in_channels, int height, int width, int out_channels, const float* x,
                  const float* weight, const float* bias, float* out, int8_t* winner) {
  return fused::forward({images, in_channels, height, width, out_channels}, x, weight, bias, out, winner) ? 0 : 1;
}

// grad_x may be null: the first layer of a network needs none.
int fused_backward(int images, int in_channels, int height, int width, int out_channels, const float* x,
                   const float* weight, const int8_t* winner, const float* grad_out, float* grad_x, float* grad_weight,
                   float* grad_bias) {
  return fused::backward({images, in_channels, height, width, out_channels}, x, weight, winner, grad_out, grad_x,
                         grad_weight, grad_bias)
             ? 0
             : 1;
}

}  // extern "C"
