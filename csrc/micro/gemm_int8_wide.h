// The int8 tile of AVX2 without VNNI: bytes are widened to 16 bits, whose products vpmaddwd adds in pairs, exactly.
//
// Multiplying the bytes themselves takes an instruction more, since vpmaddubsw wants one factor unsigned. Every pixel is widened
// once a task, every weight once for all rows of a tile, so that the loop only multiplies and adds. In both, the pairs of a quad are
// the even and the odd two of four k: what two shifts of the bytes give.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// A pixel as the tile reads it: quads, and behind them the sum of their own products. `bytes`: a multiple of 32.
inline void copy_int8_pixel(int8_t* out, const int8_t* in, int64_t bytes) {
  vi own = {};
  for (int64_t i = 0; i < bytes; i += 4 * VL) {
    const vi x = load_int(reinterpret_cast<const int32_t*>(in + i)), even = even_bytes(x), odd = odd_bytes(x);
    own = dot2(own, even, odd);
    store_quads(reinterpret_cast<int32_t*>(out + 2 * i), even, odd);
  }
  *reinterpret_cast<int32_t*>(out + 2 * bytes) = sum_lanes(own);
}

constexpr int64_t kChunkDepth = 512;      // its 16 KB of weights and the pixels of four rows fit into the first-level cache

constexpr int kFetchRows = 12;

// (depth / 4, 16 columns, 4 k) to (depth / 4, even or odd, 16 columns, 2 k), and the sums of their own products (16).
inline void widen_weights(const int8_t* b, int64_t depth, int32_t* out, vi* own) {
  vi sums[kInt16Vectors];
#pragma GCC unroll 2
  for (int j = 0; j < kInt16Vectors; ++j) sums[j] = own[j];
  for (int64_t k = 0; k < depth; k += 4, b += 4 * kPanel, out += 2 * kPanel) {
#pragma GCC unroll 2
    for (int j = 0; j < kInt16Vectors; ++j) {
      const vi x = load_int(reinterpret_cast<const int32_t*>(b) + j * VL), even = even_bytes(x), odd = odd_bytes(x);
      sums[j] = dot2(sums[j], even, odd);
      store_int(out + j * VL, even);
      store_int(out + kPanel + j * VL, odd);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < kInt16Vectors; ++j) own[j] = sums[j];
}

// Takes from the sums what rows and columns contribute alone.
inline void subtract_own_products(const Int8TileArgs& t, const vi* columns) {
  const int64_t place = round_up(t.depth, kInt8Align) * kInt8Bytes;
  for (int64_t r = 0; r < t.num_rows; ++r) {
    int32_t row = 0;
    for (int64_t tap = 0; tap < t.taps; ++tap) row += *reinterpret_cast<const int32_t*>(t.rows[r] + t.tap_offsets[tap] + place);
#pragma GCC unroll 2
    for (int j = 0; j < kInt16Vectors; ++j) {
      int32_t* c = t.c + r * kPanel + j * VL;
      store_int(c, load_int(c) - (columns[j] + row));
    }
  }
}

// Of the next panel, those that are widened first.
inline int64_t first_bytes(const Int8TileArgs& t, int64_t depth) {
  const int64_t all = t.fetch_end - t.fetch;
  return all < depth * kPanel ? all : depth * kPanel;
}

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1, "one panel fills the registers");
  alignas(32) int32_t widened[kChunkDepth / 2 * kPanel];
  vi columns[kInt16Vectors] = {};
  const int32_t* rows[kInt8Rows];
  const int64_t chunks = (t.depth + kChunkDepth - 1) / kChunkDepth, share = round_up((t.depth + chunks - 1) / chunks, 16);
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    for (int64_t k = 0; k < t.depth; k += share) {
      const int64_t depth = t.depth - k < share ? t.depth - k : share;
      widen_weights(b, depth, widened, columns);
      b += depth * kPanel;
      for (int64_t r = 0; r < round_up(t.num_rows, int8_row_step(1)); ++r) {
        rows[r] = reinterpret_cast<const int32_t*>(t.rows[r] + t.tap_offsets[tap] + k * kInt8Bytes);
      }
      // While rows multiply, the weights come that are widened next: nothing else would ask for them early.
      const bool is_last = b == t.b + t.b_panel;
      const int8_t* next = is_last ? t.fetch : b;
      const int64_t bytes = is_last ? first_bytes(t, share) : depth * kPanel;
      for (int r = 0; r < t.num_rows; r += kFetchRows) {
        const int64_t count = t.num_rows - r < kFetchRows ? t.num_rows - r : kFetchRows;
        for (int64_t i = bytes * r / t.num_rows & -kLineBytes; i < bytes * (r + count) / t.num_rows; i += kLineBytes) {
          __builtin_prefetch(next + i);
        }
        multiply_int16(rows + r, count, depth / 4, widened, t.c + r * kPanel, tap > 0 || k > 0);
      }
    }
  }
  subtract_own_products(t, columns);
}

}  // namespace
