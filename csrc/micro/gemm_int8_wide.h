// The int8 tile of AVX2 without VNNI: bytes are widened to 16 bits, whose products vpmaddwd adds in pairs, exactly.
//
// Multiplying the bytes themselves takes an instruction more, since vpmaddubsw wants one factor unsigned. Every pixel is widened
// once a task, every weight once for all rows of a tile, so that the loop only multiplies and adds. In both, the pairs are the even
// k of a group of four, then the odd ones: what two shifts of the bytes give.

namespace {

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

// A pixel as the tile reads it: for every 4 bytes an even and an odd pair. `bytes`: a multiple of 32.
inline void copy_int8_pixel(int8_t* out, const int8_t* in, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 32) {
    const vi x = load_int(reinterpret_cast<const int32_t*>(in + i));
    const __m256i even = reinterpret_cast<__m256i>(even_bytes(x)), odd = reinterpret_cast<__m256i>(odd_bytes(x));
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    __m256i* to = reinterpret_cast<__m256i*>(out + 2 * i);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

constexpr int64_t kChunkDepth = 512;      // its 16 KB of weights and the pixels of six rows fit into the first-level cache

constexpr int kFetchRows = 12;

// (depth / 4, 16 columns, 4 k) to (depth / 4, even or odd, 16 columns, 2 k).
inline void widen_weights(const int8_t* b, int64_t depth, int32_t* out) {
  for (int64_t k = 0; k < depth; k += 4, b += 4 * kPanel, out += 2 * kPanel) {
#pragma GCC unroll 2
    for (int64_t j = 0; j < kPanel; j += VL) {
      const vi x = load_int(reinterpret_cast<const int32_t*>(b) + j);
      store_int(out + j, even_bytes(x));
      store_int(out + kPanel + j, odd_bytes(x));
    }
  }
}

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  static_assert(kPanels == 1, "one panel fills the registers");
  alignas(32) int32_t widened[kChunkDepth / 2 * kPanel];
  const int32_t* rows[kInt8Rows];
  const int64_t chunks = (t.depth + kChunkDepth - 1) / kChunkDepth, share = round_up((t.depth + chunks - 1) / chunks, 4);
  const int8_t* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    for (int64_t k = 0; k < t.depth; k += share) {
      const int64_t depth = t.depth - k < share ? t.depth - k : share;
      widen_weights(b, depth, widened);
      b += depth * kPanel;
      for (int r = 0; r < kInt8Rows; ++r) {
        rows[r] = reinterpret_cast<const int32_t*>(t.rows[r] + t.tap_offsets[tap] + k * kInt8Bytes);
      }
      // While rows multiply, the weights come that are widened next: nothing else would ask for them early.
      for (int r = 0; r < t.num_rows; r += kFetchRows) {
        const int64_t count = t.num_rows - r < kFetchRows ? t.num_rows - r : kFetchRows;
        const int64_t bytes = depth * kPanel;
        for (int64_t i = bytes * r / t.num_rows & -kLineBytes; i < bytes * (r + count) / t.num_rows; i += kLineBytes) {
          __builtin_prefetch(b + i);
        }
        multiply_int16(rows + r, count, depth / 2, widened, t.c + r * kPanel, tap > 0 || k > 0);
      }
    }
  }
}

}  // namespace
