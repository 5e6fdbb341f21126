// The int8 tile of every ISA whose multiply-accumulate adds 4 products of a column to the column's int32 lane.

namespace {

// acc[column] += a[4] . b[column][4], exactly. `a` holds the same 4 bytes in every lane.
#if defined(__AVX512VNNI__)
inline vi dot4(vi acc, vi a, vi b) {
  return reinterpret_cast<vi>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__AVXVNNI__)
inline vi dot4(vi acc, vi a, vi b) {
  return reinterpret_cast<vi>(
      _mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(acc), reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#elif defined(__AVX512BW__)
// |a| times the weight with a's sign: two products of at most 128 * 127 fit into 16 bits because no weight is -128.
inline vi dot4(vi acc, vi a, vi b) {
  const __m512i signed_a = reinterpret_cast<__m512i>(a), weight = reinterpret_cast<__m512i>(b);
  const __m512i with_sign = _mm512_mask_sub_epi8(weight, _mm512_movepi8_mask(signed_a), _mm512_setzero_si512(), weight);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(signed_a), with_sign);
  return acc + reinterpret_cast<vi>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#else
inline vi byte_of(vi x, int i) { return x << (24 - 8 * i) >> 24; }
inline vi dot4(vi acc, vi a, vi b) {
  for (int i = 0; i < 4; ++i) acc += byte_of(a, i) * byte_of(b, i);
  return acc;
}
#endif

typedef int32_t int32_bytes __attribute__((aligned(1), may_alias));

// Depth is a multiple of 16, so a turn of the loop may take two steps: what counts and compares uses the ports that multiply.
constexpr int kSteps = 2;

template <int kRows, int kPanels, bool kFetches>
void dot4_tile(const Int8TileArgs& t) {
  constexpr int kPerPanel = static_cast<int>(kPanel) / VL, kVectors = kPanels * kPerPanel;
  vi acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) acc[r][j] = vi{};
  }
  const int8_t *b = t.b, *fetch = t.fetch;
  const int8_t* rows[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) rows[r] = t.rows[r];
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    // k counts from the tap's first byte, so that the pointers to rows stay what they are.
    const int64_t first = t.tap_offsets[tap], end = first + t.depth;
    for (int64_t k = first; k < end; k += kSteps * 4, b += kSteps * 4 * kPanel) {
      if (kFetches && fetch < t.fetch_end) {
        __builtin_prefetch(fetch, 0, 2);
        fetch += kLineBytes;
      }
#pragma GCC unroll 4
      for (int step = 0; step < kSteps; ++step) {
        vi bv[kVectors];
#pragma GCC unroll 16
        for (int j = 0; j < kVectors; ++j) {
          bv[j] = *reinterpret_cast<const vi_bytes*>(b + j / kPerPanel * t.b_step + (step * kPerPanel + j % kPerPanel) * VL * 4);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const vi a = splat_int(*reinterpret_cast<const int32_bytes*>(rows[r] + k + step * 4));
#pragma GCC unroll 16
          for (int j = 0; j < kVectors; ++j) acc[r][j] = dot4(acc[r][j], a, bv[j]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) store_int(t.c + r * kInt8Columns + j * VL, acc[r][j]);
  }
}

// The last rows of a block often fill no more than half a tile.
template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  constexpr int kRows = int8_rows(kPanels);
  if (t.num_rows <= kRows / 2) {
    dot4_tile<kRows / 2, kPanels, false>(t);
  } else if (kInt8FetchesAhead && t.taps == 1) {
    dot4_tile<kRows, kPanels, true>(t);
  } else {
    dot4_tile<kRows, kPanels, false>(t);
  }
}

inline void int8_tile_begin() {}
inline void int8_tile_end() {}

}  // namespace
