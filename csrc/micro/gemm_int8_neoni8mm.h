// The int8 tile of Arm's matrix multiplication instruction: smmla multiplies 2 rows by 2 columns over 8 k.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// Lanes of the accumulator of rows (2p, 2p + 1) and columns (2q, 2q + 1): row 2p column 2q, 2q + 1, then row 2p + 1.
template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1, "one panel fills the registers");
  constexpr int kPairs = kInt8Rows / 2, kColumnPairs = static_cast<int>(kPanel) / 2;
  int32x4_t acc[kPairs][kColumnPairs / 2][2];
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < kColumnPairs; ++q) acc[p][q / 2][q % 2] = vdupq_n_s32(0);
  }
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const int8_t* rows[kInt8Rows];
#pragma GCC unroll 16
    for (int r = 0; r < kInt8Rows; ++r) rows[r] = t.rows[r] + t.tap_offsets[tap];
    for (int64_t k = 0; k < t.depth; k += 8, b += 8 * kPanel) {
      int8x16_t a[kPairs];
#pragma GCC unroll 16
      for (int p = 0; p < kPairs; ++p) a[p] = vcombine_s8(vld1_s8(rows[2 * p] + k), vld1_s8(rows[2 * p + 1] + k));
#pragma GCC unroll 16
      for (int q = 0; q < kColumnPairs / 2; ++q) {
        // 4 columns of k .. k + 3 and of k + 4 .. k + 7 become 2 x 2 columns of 8 k.
        const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(b + q * 16));
        const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(b + 4 * kPanel + q * 16));
        const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
#pragma GCC unroll 16
        for (int p = 0; p < kPairs; ++p) {
          acc[p][q][0] = vmmlaq_s32(acc[p][q][0], a[p], low);
          acc[p][q][1] = vmmlaq_s32(acc[p][q][1], a[p], high);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < kColumnPairs / 2; ++q) {
      int32_t* c = t.c + 2 * p * kInt8Columns + 4 * q;
      vst1q_s32(c, vcombine_s32(vget_low_s32(acc[p][q][0]), vget_low_s32(acc[p][q][1])));
      vst1q_s32(c + kInt8Columns, vcombine_s32(vget_high_s32(acc[p][q][0]), vget_high_s32(acc[p][q][1])));
    }
  }
}

}  // namespace
