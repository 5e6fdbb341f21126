// Convolutions with few output channels, such as the one that makes pixels: a register tile of whole panels would multiply
// mostly padding. Here the lanes of a vector are channels of the input, and a sum is added up across lanes at its end.

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kNarrowRows = 4;
#else
constexpr int kNarrowRows = 2;      // of 16 registers
#endif
constexpr int64_t kNarrowColumns = 4;

struct NarrowScratch {
  int64_t pixel_stride, tile, weights, sums;     // floats
};

inline NarrowScratch narrow_scratch(const GemmArgs& g) {
  NarrowScratch s;
  s.pixel_stride = gemm_scratch(g).tile_stride;
  s.tile = gemm_scratch(g).tile;
  s.weights = g.kernel_h * g.kernel_w * kNarrowColumns * g.k_block;
  s.sums = round_up(g.block_h * g.block_w, kNarrowRows) * kPanel;
  return s;
}

// Channels [k0, k0 + depth) of the first panel -> (tap, column, depth)
inline void turn_weights(const GemmArgs& g, int64_t k0, int64_t depth, float* weights) {
  for (int64_t tap = 0; tap < g.kernel_h * g.kernel_w; ++tap, weights += kNarrowColumns * depth) {
    for (int64_t k = 0; k < depth; ++k) {
      float columns[VL];
      store(columns, load_weight(g, 0, (tap * g.k_channels + k0 + k) * kPanel));
      for (int j = 0; j < kNarrowColumns; ++j) weights[j * depth + k] = columns[j];
    }
  }
}

// sums (pixel, 16) (+)= tile * weights, the first kNarrowColumns columns
inline void multiply_narrow(const GemmArgs& g, const GemmTask& t, const LoadedTile& a, const float* weights, int64_t depth, float* sums,
                            bool accumulate) {
  const int64_t pixels = t.h * t.w;
  int64_t y = 0, x = 0;
  for (int64_t m = 0; m < pixels; m += kNarrowRows) {
    const float* rows[kNarrowRows];
    for (int r = 0; r < kNarrowRows; ++r) {
      rows[r] = a.data + (y * g.stride_h * a.width + x * g.stride_w) * a.stride;
      if (m + r + 1 < pixels && ++x == t.w) x = 0, ++y;
    }
    vf total[kNarrowRows][kNarrowColumns] = {};
    const float* b = weights;
    for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < g.kernel_w; ++kx, b += kNarrowColumns * depth) {
        const int64_t offset = (ky * a.width + kx) * a.stride;
        for (int64_t k = 0; k < depth; k += VL) {
          vf column[kNarrowColumns];
#pragma GCC unroll 4
          for (int j = 0; j < kNarrowColumns; ++j) column[j] = load(b + j * depth + k);
#pragma GCC unroll 4
          for (int r = 0; r < kNarrowRows; ++r) {
            const vf row = load(rows[r] + offset + k);
#pragma GCC unroll 4
            for (int j = 0; j < kNarrowColumns; ++j) total[r][j] += row * column[j];
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kNarrowRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kNarrowColumns; ++j) {
        float* c = sums + (m + r) * kPanel + j;
        *c = sum(total[r][j]) + (accumulate ? *c : 0.0f);
      }
    }
  }
}

}  // namespace

static int64_t narrow_scratch_bytes(const GemmArgs* args) {
  const NarrowScratch s = narrow_scratch(*args);
  return (s.tile + s.weights + s.sums) * static_cast<int64_t>(sizeof(float));
}

static void narrow(const GemmArgs* args, int64_t task, void* scratch) {
  const GemmArgs& g = *args;
  const NarrowScratch s = narrow_scratch(g);
  const GemmTask t = gemm_task(g, task);
  float* tile = static_cast<float*>(scratch);
  float* weights = tile + s.tile;
  float* sums = weights + s.weights;
  memset(sums, 0, static_cast<size_t>(s.sums) * sizeof(float));
  const TileRegion region = {t.image, t.y0 * g.stride_h - g.pad_top, t.x0 * g.stride_w - g.pad_left,
                             (t.h - 1) * g.stride_h + g.kernel_h, (t.w - 1) * g.stride_w + g.kernel_w};
  for (KBlock k = k_block_from(g, 0, 0, 0); k.depth > 0; k = k_block_after(g, k)) {
    load_tile(g, region, k.source, k.c0, k.k0, k.depth, tile, s.pixel_stride);
    turn_weights(g, k.k0, k.depth, weights);
    multiply_narrow(g, t, {tile, region.w, s.pixel_stride}, weights, k.depth, sums, k.k0 > 0);
  }
  gemm_epilogue(g, t, sums, kPanel);
}
