// The int8 tile of Arm without dot products. smull and smlal make 16-bit sums of two products, which cannot overflow because no
// weight is -128 (2 * 128 * 127 = 32512); sadalp adds pairs of these to the int32 lanes. Two lanes belong to a column, since the
// 4 k of a column lie together, and become one at the end.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// One step of the arithmetic, for micro/peak.h.
constexpr int kInt8StepMacs = 16;
inline int32x4_t int8_step(int32x4_t sum, int8x16_t a, int8x16_t b) {
  return vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b));
}

typedef int32x4_t Int8Accumulators[kInt8Rows][8];   // 2 columns each

// All rows times 8 k of all columns: 4 k from `b` on and the 4 k that follow. `first` and `second` hold these 4 k of a row twice.
inline void int8_multiply(Int8Accumulators acc, const int8x16_t* first, const int8x16_t* second, const int8_t* b) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int8x16_t w0 = vld1q_s8(b + j * 16), w1 = vld1q_s8(b + 4 * kPanel + j * 16);
    int16x8_t low[kInt8Rows], high[kInt8Rows];
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) {
      low[r] = vmull_s8(vget_low_s8(w0), vget_low_s8(first[r]));
      high[r] = vmull_high_s8(w0, first[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) {
      low[r] = vmlal_s8(low[r], vget_low_s8(w1), vget_low_s8(second[r]));
      high[r] = vmlal_high_s8(high[r], w1, second[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) {
      acc[r][2 * j] = vpadalq_s16(acc[r][2 * j], low[r]);
      acc[r][2 * j + 1] = vpadalq_s16(acc[r][2 * j + 1], high[r]);
    }
  }
}

template <int kLane>
inline int8x16_t int8_spread(int8x16_t a) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), kLane));
}

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1, "one panel fills the registers");
  Int8Accumulators acc;
#pragma GCC unroll 8
  for (int r = 0; r < kInt8Rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) acc[r][j] = vdupq_n_s32(0);
  }
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const int8_t* rows[kInt8Rows];
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) rows[r] = t.rows[r] + t.tap_offsets[tap];
    for (int64_t k = 0; k < t.depth; k += 16, b += 16 * kPanel) {
      int8x16_t a[kInt8Rows], first[kInt8Rows], second[kInt8Rows];
#pragma GCC unroll 8
      for (int r = 0; r < kInt8Rows; ++r) {
        a[r] = vld1q_s8(rows[r] + k);
        first[r] = int8_spread<0>(a[r]);
        second[r] = int8_spread<1>(a[r]);
      }
      int8_multiply(acc, first, second, b);
#pragma GCC unroll 8
      for (int r = 0; r < kInt8Rows; ++r) {
        first[r] = int8_spread<2>(a[r]);
        second[r] = int8_spread<3>(a[r]);
      }
      int8_multiply(acc, first, second, b + 8 * kPanel);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kInt8Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) vst1q_s32(t.c + r * kInt8Columns + 4 * j, vpaddq_s32(acc[r][2 * j], acc[r][2 * j + 1]));
  }
}

}  // namespace
