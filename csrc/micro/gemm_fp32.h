// Register tile gemm_fp32: C (MR x NR) = or += A (MR rows) * B (panels of 16 columns), K in `taps` runs of `depth`.
//
// MR x NR fills the registers: 8x32 of 32 zmm, 6x16 of 16 ymm, 6x16 of 32 NEON q, 2x16 of 16 SSE xmm.

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTilePanels = 2;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif
// More pixels a task mean fewer passes over the weights, and more second-level cache: what has AVX-512 has enough of it.
constexpr int64_t kTileBlockPixels = VL == 16 ? 256 : 128;
constexpr int kTileColumns = kTilePanels * static_cast<int>(kPanel);

struct TileArgs {
  const float* rows[kTileRows];   // A: one pointer per row; a row that does not exist repeats another
  const int64_t* tap_offsets;     // (taps) elements from a row's pointer to the tap's first channel
  int64_t taps, depth;
  const float* b;                 // (panel, tap, k, 16)
  int64_t b_panel, b_tap;         // strides
  float* c;
  int64_t c_stride;
  bool accumulate;                // add to C instead of overwriting it
};

namespace {

template <int kPanels>
void gemm_tile(const TileArgs& t) {
  constexpr int kVectors = kPanels * static_cast<int>(kPanel) / VL;
  constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / VL;
  vf acc[kTileRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) acc[r][j] = t.accumulate ? load(t.c + r * t.c_stride + j * VL) : vf{};
  }
  const float* rows[kTileRows];
  for (int64_t tap = 0; tap < t.taps; ++tap) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) rows[r] = t.rows[r] + t.tap_offsets[tap];
    const float* b = t.b + tap * t.b_tap;
    for (int64_t k = 0; k < t.depth; ++k, b += kPanel) {
      vf bv[kVectors];
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) bv[j] = load(b + (j / kVectorsPerPanel) * t.b_panel + (j % kVectorsPerPanel) * VL);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        vf a = splat(rows[r][k]);
#pragma GCC unroll 16
        for (int j = 0; j < kVectors; ++j) acc[r][j] += a * bv[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) store(t.c + r * t.c_stride + j * VL, acc[r][j]);
  }
}

// One tile of `panels` (1 or kTilePanels) panels.
inline void run_tile(const TileArgs& t, int panels) {
  if (panels == kTilePanels) {
    gemm_tile<kTilePanels>(t);
  } else {
    gemm_tile<1>(t);
  }
}

}  // namespace
