// The int8 tile of Intel AMX: 32 x 32 in four tile registers; a B tile is 1 KB of the packed layout as it lies.

namespace {

struct AmxConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t column_bytes[16];
  uint8_t rows[16];
};

inline void int8_tile_begin() {
  AmxConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.column_bytes[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
}

// Tile state left in use would be saved at every switch of threads.
inline void int8_tile_end() { _tile_release(); }

// 16 rows that begin at rows[0]: their common distance in bytes, or 0 when they have none.
inline int64_t common_stride(const int8_t* const* rows) {
  const int64_t stride = rows[1] - rows[0];
  for (int r = 2; r < 16; ++r) {
    if (rows[r] - rows[r - 1] != stride) return 0;
  }
  return stride;
}

inline void gather_rows(const int8_t* const* rows, int64_t offset, int8_t* out) {
  for (int r = 0; r < 16; ++r) {
    _mm512_storeu_si512(out + r * 64, _mm512_loadu_si512(rows[r] + offset));
  }
}

// What streams is not kept in the first-level cache, where it would push out the other operand.
#define MDRT_LOAD_TILE(tile, base, stride, streams) \
  if (streams) {                                    \
    _tile_stream_loadd(tile, base, stride);         \
  } else {                                          \
    _tile_loadd(tile, base, stride);                \
  }

// Loads 16 rows x 64 bytes of A into tile register `tile`; rows without a common distance go through `buffer`.
#define MDRT_LOAD_A(tile, row_pointers, stride, offset, buffer)                 \
  if (stride) {                                                                 \
    MDRT_LOAD_TILE(tile, (row_pointers)[0] + (offset), stride, !kIsConvolution) \
  } else {                                                                      \
    gather_rows(row_pointers, offset, buffer);                                  \
    _tile_loadd(tile, buffer, 64);                                              \
  }

constexpr int64_t kFetchBytes = 256;      // a step: with 256 pixels in eight tiles, a panel pair while another one multiplies

// A convolution's weights are too many for the cache and stream past its rows, which every tap reads again; a product's rows stream past
// the weights, which all of them read.
template <int kPanels, bool kIsConvolution>
void amx_tile(const Int8TileArgs& t) {
  alignas(64) int8_t a_buffer[2][1024], b_buffer[kPanels][1024];
  const bool two = t.num_rows > 16;
  const int64_t stride0 = common_stride(t.rows), stride1 = two ? common_stride(t.rows + 16) : 0;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int8_t *b = t.b, *const b_end = t.b + t.b_panel, *fetch = t.fetch;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    for (int64_t k = 0; k < t.depth; k += 64) {
      const int64_t offset = t.tap_offsets[tap] + k, rest = t.depth - k;
      const int8_t* b0 = b;
      const int8_t* b1 = b + t.b_step;
      if (b_end - b < 1024) {
        // A is zero from the tap's last channel on, but what lies behind the panel must not be read.
        for (int p = 0; p < kPanels; ++p) {
          memset(b_buffer[p], 0, 1024);
          memcpy(b_buffer[p], b + p * t.b_step, static_cast<size_t>(rest * kPanel));
        }
        b0 = b_buffer[0];
        b1 = b_buffer[kPanels - 1];
      }
      b += (rest < 64 ? rest : 64) * kPanel;
      for (int64_t i = 0; i < kFetchBytes && fetch < t.fetch_end; i += kLineBytes, fetch += kLineBytes) __builtin_prefetch(fetch, 0, 2);
      MDRT_LOAD_TILE(6, b0, 64, kIsConvolution)
      MDRT_LOAD_A(4, t.rows, stride0, offset, a_buffer[0])
      _tile_dpbssd(0, 4, 6);
      if (kPanels == 2) {
        MDRT_LOAD_TILE(7, b1, 64, kIsConvolution)
        _tile_dpbssd(1, 4, 7);
      }
      if (two) {
        MDRT_LOAD_A(5, t.rows + 16, stride1, offset, a_buffer[1])
        _tile_dpbssd(2, 5, 6);
        if (kPanels == 2) _tile_dpbssd(3, 5, 7);
      }
    }
  }
  constexpr int kRowBytes = kInt8Columns * 4;
  _tile_stored(0, t.c, kRowBytes);
  if (kPanels == 2) _tile_stored(1, t.c + kPanel, kRowBytes);
  if (two) {
    _tile_stored(2, t.c + 16 * kInt8Columns, kRowBytes);
    if (kPanels == 2) _tile_stored(3, t.c + 16 * kInt8Columns + kPanel, kRowBytes);
  }
}
#undef MDRT_LOAD_A
#undef MDRT_LOAD_TILE

template <int kPanels>
void int8_tile(const Int8TileArgs& t) {
  if (t.taps > 1) {
    amx_tile<kPanels, true>(t);
  } else {
    amx_tile<kPanels, false>(t);
  }
}

}  // namespace
