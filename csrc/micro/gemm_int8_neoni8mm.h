// The int8 tile of Arm's matrix multiplication instruction: smmla multiplies 2 rows by 2 columns over 8 k.
//
// The file's layout has 4 k of a column together and the instruction wants 8. So a tile has many rows: a chunk of weights is
// brought into that order on the stack and used for all of them, six at a time.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// One step of the arithmetic, for micro/peak.h.
constexpr int kInt8StepMacs = 32;
inline int32x4_t int8_step(int32x4_t sum, int8x16_t a, int8x16_t b) { return vmmlaq_s32(sum, a, b); }

constexpr int kGroupRows = 6, kColumnPairs = static_cast<int>(kPanel) / 2;
constexpr int64_t kChunkDepth = 512;      // its 8 KB of weights and the rows' bytes fit into the smallest first-level cache

// (depth / 4, 16 columns, 4 k) to (depth / 8, 8 pairs of columns, 2 columns, 8 k).
inline void pair_columns(const int8_t* b, int64_t depth, int8_t* out) {
  for (int64_t k = 0; k < depth; k += 8, b += 8 * kPanel, out += 8 * kPanel) {
#pragma GCC unroll 4
    for (int q = 0; q < kColumnPairs / 2; ++q) {
      const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(b + q * 16));
      const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(b + 4 * kPanel + q * 16));
      vst1q_s8(out + q * 32, vreinterpretq_s8_s32(vzip1q_s32(first, second)));
      vst1q_s8(out + q * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(first, second)));
    }
  }
}

// C (6, 16) = or += 6 rows, from `offset` bytes behind their pointers on, times paired columns. Lanes of the sums of rows (2p, 2p + 1)
// and columns (2q, 2q + 1): row 2p column 2q, column 2q + 1, then row 2p + 1.
inline void multiply_pairs(const int8_t* const* row_pointers, int64_t offset, int64_t depth, const int8_t* b, int32_t* c,
                           bool accumulate) {
  constexpr int kPairs = kGroupRows / 2;
  const int8_t* rows[kGroupRows];
#pragma GCC unroll 8
  for (int r = 0; r < kGroupRows; ++r) rows[r] = row_pointers[r] + offset;
  int32x4_t acc[kPairs][kColumnPairs];
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 8
    for (int q = 0; q < kColumnPairs; ++q) acc[p][q] = vdupq_n_s32(0);
  }
  for (int64_t k = 0; k < depth; k += 8, b += 8 * kPanel) {
    int8x16_t a[kPairs];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) a[p] = vcombine_s8(vld1_s8(rows[2 * p] + k), vld1_s8(rows[2 * p + 1] + k));
#pragma GCC unroll 8
    for (int q = 0; q < kColumnPairs; ++q) {
      const int8x16_t weights = vld1q_s8(b + q * 16);
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) acc[p][q] = vmmlaq_s32(acc[p][q], a[p], weights);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 8
    for (int q = 0; q < kColumnPairs; q += 2) {
      int32_t *even = c + 2 * p * kPanel + 2 * q, *odd = even + kPanel;
      int32x4_t x = vcombine_s32(vget_low_s32(acc[p][q]), vget_low_s32(acc[p][q + 1]));
      int32x4_t y = vcombine_s32(vget_high_s32(acc[p][q]), vget_high_s32(acc[p][q + 1]));
      if (accumulate) x = vaddq_s32(x, vld1q_s32(even)), y = vaddq_s32(y, vld1q_s32(odd));
      vst1q_s32(even, x);
      vst1q_s32(odd, y);
    }
  }
}

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1 && kInt8Rows % kGroupRows == 0, "one panel fills the registers");
  alignas(64) int8_t paired[kChunkDepth * kPanel];
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    for (int64_t k = 0; k < t.depth; k += kChunkDepth) {
      const int64_t depth = t.depth - k < kChunkDepth ? t.depth - k : kChunkDepth;
      pair_columns(b, depth, paired);
      b += depth * kPanel;
      for (int r = 0; r < t.num_rows; r += kGroupRows) {
        multiply_pairs(t.rows + r, t.tap_offsets[tap] + k, depth, paired, t.c + r * kPanel, tap > 0 || k > 0);
      }
    }
  }
}

}  // namespace
