// What GroupNorm needs of a map, per block of pixels and channel: the block's first value, and sums of the differences from it and
// of their squares, so that a large mean does not drown a small variance. Whoever writes a block sums it while it is near.

namespace {

// `h` rows of `w` pixels that begin at pixel `first`, `pitch` pixels apart.
struct PixelBlock {
  int64_t first, h, w, pitch;
};

// kVectors vectors of channels, each channel in the order of pixels. Several at a time, since each addition waits for the one before.
template <int kVectors>
void sum_channels(const ActivationView& x, const PixelBlock& block, int64_t c, float* row) {
  vf origin[kVectors], total[kVectors], square[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    origin[v] = load_as(x.data, block.first * x.stride + c + v * VL, x.dtype);
    total[v] = square[v] = vf{};
  }
  for (int64_t i = 0; i < block.h; ++i) {
    const int64_t first = block.first + i * block.pitch;
    for (int64_t pixel = first; pixel < first + block.w; ++pixel) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const vf d = load_as(x.data, pixel * x.stride + c + v * VL, x.dtype) - origin[v];
        total[v] += d;
        square[v] += d * d;
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store(row + c + v * VL, origin[v]);
    store(row + x.channels + c + v * VL, total[v]);
    store(row + 2 * x.channels + c + v * VL, square[v]);
  }
}

// Channels [c, end), whole vectors.
inline void sum_block(const ActivationView& x, const PixelBlock& block, int64_t c, int64_t end, float* row) {
  constexpr int kTogether = 4;
  if (c == 0) row[3 * x.channels] = static_cast<float>(block.h * block.w);
  for (; c + kTogether * VL <= end; c += kTogether * VL) sum_channels<kTogether>(x, block, c, row);
  for (; c < end; c += VL) sum_channels<1>(x, block, c, row);
}

}  // namespace
