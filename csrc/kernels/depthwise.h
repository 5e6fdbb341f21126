// Depthwise convolution that stands alone; before a 1x1 convolution it is part of the GEMM's loader.

// One task per output row.
static void depthwise(const DepthwiseArgs* args, int64_t task, void*) {
  const DepthwiseArgs& a = *args;
  const int64_t image = task / a.out_h, y0 = task % a.out_h * a.stride_h - a.pad_top;
  for (int64_t x = 0; x < a.out_w; ++x) {
    const int64_t x0 = x * a.stride_w - a.pad_left;
    const int64_t output = (task * a.out_w + x) * a.output.stride;
    for (int64_t c = 0; c < a.output.channels; c += VL) {
      vf total = a.bias ? load(a.bias + c) : vf{};
      for (int64_t ky = 0; ky < a.kernel_h; ++ky) {
        if (y0 + ky < 0 || y0 + ky >= a.in_h) continue;
        const int64_t row = (image * a.in_h + y0 + ky) * a.in_w;
        for (int64_t kx = 0; kx < a.kernel_w; ++kx) {
          if (x0 + kx < 0 || x0 + kx >= a.in_w) continue;
          const vf pixel = load_as(a.input.data, (row + x0 + kx) * a.input.stride + c, a.input.dtype);
          total += pixel * load(a.weight + (ky * a.kernel_w + kx) * a.output.channels + c);
        }
      }
      store_as(a.output.data, output + c, a.output.dtype, total);
    }
  }
}
