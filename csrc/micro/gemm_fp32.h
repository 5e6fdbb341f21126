// Register tile gemm_fp32: C (MR x NR) = or += A (MR rows) * B (panels of 16 columns), K in `taps` runs of `depth`.
//
// MR x NR fills the registers: 8x48 of 32 zmm, 6x16 of 16 ymm, 6x16 of 32 NEON q, 2x16 of 16 SSE xmm. On x86 four steps of K
// stand in one round of the loop: else counting takes the ports of multiplications.

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTilePanels = 2, kMostPanels = 3;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTilePanels = 1, kMostPanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1, kMostPanels = 1;
#endif
#if defined(__aarch64__)
constexpr int kTileSteps = 1;
#else
constexpr int kTileSteps = 4;
#endif
// More pixels a task mean fewer passes over the weights, and more second-level cache: what has AVX-512 has enough of it.
constexpr int64_t kTileBlockPixels = VL == 16 ? 256 : 128;
constexpr int64_t kTileWeightBytes = VL == 16 ? 112 << 10 : 72 << 10;
constexpr int kTileColumns = kMostPanels * static_cast<int>(kPanel);

constexpr int64_t kLineBytes = 64;

// Weights to bring near while a tile runs: bytes [first, last) of each of its taps and panels, further on.
struct FetchAhead {
  const char* from;             // where what the tile's `b` is to this tile will be to a later one
  int64_t panel_bytes, tap_bytes;
  int64_t first, last;
};

struct TileArgs {
  const float* rows[kTileRows];   // A: one pointer per row; a row that does not exist repeats another
  const int64_t* tap_offsets;     // (taps) elements from a row's pointer to the tap's first channel
  int64_t taps, depth;
  const float* b;                 // (panel, tap, k, 16)
  int64_t b_panel, b_tap;         // strides
  float* c;
  int64_t c_stride;
  bool accumulate;                // add to C instead of overwriting it
  FetchAhead ahead = {};
};

namespace {

template <int kPanels>
void fetch_ahead(const FetchAhead& ahead, int64_t tap) {
  for (int p = 0; p < kPanels; ++p) {
    const char* from = ahead.from + p * ahead.panel_bytes + tap * ahead.tap_bytes;
    for (int64_t i = ahead.first; i < ahead.last; i += kLineBytes) __builtin_prefetch(from + i, 0, 2);
  }
}

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
    fetch_ahead<kPanels>(t.ahead, tap);
#pragma GCC unroll kTileSteps
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

// How many of the panels that are left the next tile takes: even shares, since one panel alone wastes loads.
inline int panel_group(int64_t left) {
  const int64_t tiles = (left + kMostPanels - 1) / kMostPanels;
  return static_cast<int>((left + tiles - 1) / tiles);
}

// One tile of `panels` (1 to kMostPanels) panels.
inline void run_tile(const TileArgs& t, [[maybe_unused]] int panels) {
#if defined(__AVX512F__)
  if (panels == 3) return gemm_tile<3>(t);
  if (panels == 2) return gemm_tile<2>(t);
#endif
  gemm_tile<1>(t);
}

}  // namespace
