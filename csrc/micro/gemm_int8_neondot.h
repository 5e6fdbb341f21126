// The int8 tile of Arm's dot product instruction: sdot adds 4 products of a column to the column's int32 lane. One load brings
// 16 k of a row, and the instruction picks 4 of them by lane, so that nothing but products takes the vector units.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// One step of the arithmetic, for micro/peak.h.
constexpr int kInt8StepMacs = 16;
inline int32x4_t int8_step(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }

typedef int32x4_t Int8Accumulators[kInt8Rows][4];   // 4 columns each

// The 4 k of lane kLane of every row times 4 k of all columns.
template <int kLane>
inline void int8_dot(Int8Accumulators acc, const int8x16_t* a, const int8_t* b) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int8x16_t weight = vld1q_s8(b + kLane * 4 * kPanel + j * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) acc[r][j] = vdotq_laneq_s32(acc[r][j], weight, a[r], kLane);
  }
}

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1, "one panel fills the registers");
  Int8Accumulators acc;
#pragma GCC unroll 8
  for (int r = 0; r < kInt8Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[r][j] = vdupq_n_s32(0);
  }
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const int8_t* rows[kInt8Rows];
#pragma GCC unroll 8
    for (int r = 0; r < kInt8Rows; ++r) rows[r] = t.rows[r] + t.tap_offsets[tap];
    for (int64_t k = 0; k < t.depth; k += 16, b += 16 * kPanel) {
      int8x16_t a[kInt8Rows];
#pragma GCC unroll 8
      for (int r = 0; r < kInt8Rows; ++r) a[r] = vld1q_s8(rows[r] + k);
      int8_dot<0>(acc, a, b);
      int8_dot<1>(acc, a, b);
      int8_dot<2>(acc, a, b);
      int8_dot<3>(acc, a, b);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kInt8Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) vst1q_s32(t.c + r * kInt8Columns + 4 * j, acc[r][j]);
  }
}

}  // namespace
