// Weights as floats, whatever they are stored as, for products of floats. Elements are counted in the order (panel, K, column);
// of int8 the fours of K lie together (docs/format.md), so that a vector of columns is every fourth byte of 4 VL.

namespace {

constexpr int64_t kFour = 4 * kPanel;       // elements of a panel that lie together

// Fours of VL columns, from a multiple of VL on.
inline vi load_fours(const GemmArgs& g, int64_t four, int64_t column) {
  return load_int(reinterpret_cast<const int32_t*>(static_cast<const int8_t*>(g.weight) + four * kFour) + column);
}

inline vf int8_as_floats(vi fours, int64_t step, vf scale) {
  const vi bytes = (fours << static_cast<int32_t>(24 - 8 * step)) >> 24;
  return __builtin_convertvector(bytes, vf) * scale;
}

// VL columns from element `at` on.
inline vf load_weight(const GemmArgs& g, int64_t panel, int64_t at) {
  if (g.weight_dtype != DType::int8) return load_as(g.weight, at, g.weight_dtype);
  const int64_t column = at % kPanel;
  return int8_as_floats(load_fours(g, at / kFour, column), at / kPanel % 4, load(g.weight_scale + panel * kPanel + column));
}

// `count` elements from `at` on, whole fours, to `floats`.
inline void load_weights(const GemmArgs& g, int64_t panel, int64_t at, int64_t count, float* floats) {
  if (g.weight_dtype != DType::int8) {
    for (int64_t i = 0; i < count; i += VL) store(floats + i, load_as(g.weight, at + i, g.weight_dtype));
    return;
  }
  for (int64_t i = 0; i < count; i += kFour) {
    for (int64_t column = 0; column < kPanel; column += VL) {
      const vi fours = load_fours(g, (at + i) / kFour, column);
      const vf scale = load(g.weight_scale + panel * kPanel + column);
      for (int64_t step = 0; step < 4; ++step) store(floats + i + step * kPanel + column, int8_as_floats(fours, step, scale));
    }
  }
}

}  // namespace
