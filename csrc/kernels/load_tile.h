// The loader of the implicit GEMM: brings a block of input pixels into an fp32 scratch tile and does on the way
// whatever stands between the stored tensor and the product: half to float, normalisation, activation, nearest resize,
// zero padding, the choice of the concatenated source. So one register tile serves every layer.

namespace {

inline int64_t element_bytes(DType dtype) { return dtype == DType::int8 ? 1 : dtype == DType::fp16 ? 2 : 4; }

inline const char* element(const void* base, int64_t index, DType dtype) {
  return static_cast<const char*>(base) + index * element_bytes(dtype);
}

// dst (pixels, channels) = activation(src * scale + shift); strides in elements.
template <bool kHalf, bool kNorm, Activation kActivation>
void load_pixels(float* dst, int64_t dst_stride, const void* src, int64_t src_stride, int64_t pixels, int64_t channels,
                 const float* scale, const float* shift) {
  constexpr DType kDType = kHalf ? DType::fp16 : DType::fp32;
  for (int64_t i = 0; i < pixels; ++i) {
    const char* from = element(src, i * src_stride, kDType);
    float* to = dst + i * dst_stride;
    for (int64_t c = 0; c < channels; c += VL) {
      vf x = load_as(from, c, kDType);
      if (kNorm) x = x * load(scale + c) + load(shift + c);
      store(to + c, activate(x, kActivation));
    }
  }
}

typedef void (*LoadPixels)(float*, int64_t, const void*, int64_t, int64_t, int64_t, const float*, const float*);

template <bool kHalf, bool kNorm>
LoadPixels choose_load(Activation activation) {
  switch (activation) {
    case Activation::silu: return load_pixels<kHalf, kNorm, Activation::silu>;
    case Activation::gelu: return load_pixels<kHalf, kNorm, Activation::gelu>;
    case Activation::quick_gelu: return load_pixels<kHalf, kNorm, Activation::quick_gelu>;
    default: return load_pixels<kHalf, kNorm, Activation::none>;
  }
}

inline LoadPixels choose_load(DType dtype, bool norm, Activation activation) {
  if (dtype == DType::fp16) return norm ? choose_load<true, true>(activation) : choose_load<true, false>(activation);
  return norm ? choose_load<false, true>(activation) : choose_load<false, false>(activation);
}

struct TileRegion {
  int64_t image, y, x;      // top left input pixel of the view, may be negative (padding)
  int64_t h, w;             // pixels to load
};

// Brings some channels near, to be read or written: pixels lie far apart, where the hardware does not look ahead.
template <bool kToWrite>
void fetch_pixel(const void* base, int64_t index, int64_t channels, DType dtype) {
  const char* from = element(base, index, dtype);
  const char* end = element(base, index + channels, dtype);
  for (; from < end; from += kLineBytes) __builtin_prefetch(from, kToWrite);
}

constexpr int64_t kPixelsAhead = 8;

// tile: (region.h, region.w, stride); channels [c0, c0 + channels) of source `s`, whose first is channel `k0` of K.
inline void load_tile(const GemmArgs& g, const TileRegion& region, int s, int64_t c0, int64_t k0, int64_t channels, float* tile,
                      int64_t stride) {
  const ActivationView& source = g.sources[s];
  const LoadPixels load = choose_load(source.dtype, g.norm != nullptr, g.input_activation);
  const float* scale = g.norm ? g.norm + region.image * 2 * g.k_channels + k0 : nullptr;
  const float* shift = g.norm ? scale + g.k_channels : nullptr;
  const int64_t image_pixel = region.image * g.in_h * g.in_w;
  const bool resized = g.view_h != g.in_h || g.view_w != g.in_w;
  for (int64_t y = 0; y < region.h; ++y) {
    const int64_t view_y = region.y + y;
    const bool outside = view_y < 0 || view_y >= g.view_h;
    const int64_t row = outside ? 0 : image_pixel + (resized ? view_y * g.in_h / g.view_h : view_y) * g.in_w;
    float* dst = tile + y * region.w * stride;
    for (int64_t x = 0; x < region.w; ++x, dst += stride) {
      const int64_t view_x = region.x + x;
      if (outside || view_x < 0 || view_x >= g.view_w) {
        memset(dst, 0, static_cast<size_t>(channels) * sizeof(float));
        continue;
      }
      const int64_t pixel = row + (resized ? view_x * g.in_w / g.view_w : view_x);
      fetch_pixel<false>(source.data, (pixel + kPixelsAhead) * source.stride + c0, channels, source.dtype);
      load(dst, stride, element(source.data, pixel * source.stride + c0, source.dtype), source.stride, 1, channels, scale, shift);
    }
  }
}

// Depthwise convolution of a loaded tile: out (block_h * block_w, out_stride).
inline void depthwise_tile(const GemmArgs& g, const float* tile, int64_t tile_w, int64_t block_h, int64_t block_w, int64_t k0,
                           int64_t channels, int64_t stride, float* out, int64_t out_stride) {
  for (int64_t y = 0; y < block_h; ++y) {
    for (int64_t x = 0; x < block_w; ++x, out += out_stride) {
      for (int64_t c = 0; c < channels; c += VL) {
        vf total = g.depthwise_bias ? load(g.depthwise_bias + k0 + c) : vf{};
        for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
          const float* row = tile + ((y * g.stride_h + ky) * tile_w + x * g.stride_w) * stride + c;
          const float* weight = g.depthwise + ky * g.kernel_w * g.k_channels + k0 + c;
          for (int64_t kx = 0; kx < g.kernel_w; ++kx) total += load(row + kx * stride) * load(weight + kx * g.k_channels);
        }
        store(out + c, total);
      }
    }
  }
}

}  // namespace
