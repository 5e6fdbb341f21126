// 3x3 convolutions with stride 1 and int8 weights by Winograd's F(2x2, 3x3), in exact integers: 16 products of 16-bit numbers for
// 4 outputs where the direct way takes 36 of bytes.
//
// The transform of the weights has halves in it; doubled in both directions it is whole, and a sum is four times what the
// direct way gives: the same bytes come out. Transformed inputs reach 4 * 255, transformed weights 9 * 127. Sums may wrap around on
// their way; the last one fits into 32 bits as long as there are no more than kWinogradInt8Channels (blocks.cc).
//
// A task computes block_h x block_w output pixels, in tiles of 2x2, times task_panels panels. For each block of channels the pixels
// are transformed to 16 points, for each panel so are the weights; then every point is a product of matrices.

namespace {

// Where products of bytes take as many instructions as those of 16 bits.
#if defined(MDRT_WIDE_INT8_A) || (defined(__AVX512BW__) && !defined(__AVX512VNNI__))
constexpr bool kInt8WinogradPays = true;
#else
constexpr bool kInt8WinogradPays = false;
#endif

constexpr int64_t kIntOut = 2, kIntIn = 4, kIntPoints = 16;
constexpr int64_t kGroupBytes = 4 * VL;         // channels whose even and odd pairs, side by side, fill two vectors

// Activations: the even and the odd channels of a group of four.
#ifdef MDRT_UNSIGNED_INT8_A
inline vs even_channels(vi x) { return reinterpret_cast<vs>(x & 0x00ff00ff); }
inline vs odd_channels(vi x) { return reinterpret_cast<vs>(reinterpret_cast<vi>(reinterpret_cast<vu>(x) >> 8) & 0x00ff00ff); }
#else
inline vs even_channels(vi x) { return reinterpret_cast<vs>(even_bytes(x)); }
inline vs odd_channels(vi x) { return reinterpret_cast<vs>(odd_bytes(x)); }
#endif

// Four numbers of the input in a row.
inline void int8_winograd_input(const vs* x, vs* out) {
  out[0] = x[0] - x[2];
  out[1] = x[1] + x[2];
  out[2] = x[2] - x[1];
  out[3] = x[1] - x[3];
}

// Three weights in a row, doubled.
inline void int8_winograd_weight(const vs* w, vs* out) {
  const vs ends = w[0] + w[2];
  out[0] = w[0] + w[0];
  out[1] = ends + w[1];
  out[2] = ends - w[1];
  out[3] = w[2] + w[2];
}

// Sizes of one task's scratch, in units of its arrays.
struct Int8WinogradScratch {
  int64_t columns;                            // pixels of a row, halo included
  int64_t pixels;                             // pointers to them
  int64_t padding;                            // bytes of a pixel of padding
  int64_t tiles, tile_stride, input_point;    // inputs, 32 bits: (point, tile, quad, 2)
  int64_t weight_point;                       // weights, 32 bits: (point, quad, 2, 16)
  int64_t sum_panel, sum_point;               // sums, 32 bits: (point, panel, tile, 16)
  int64_t results;                            // sums of a row of tiles
};

inline Int8WinogradScratch int8_winograd_scratch(const GemmArgs& g) {
  Int8WinogradScratch s;
  const int64_t rows = round_up(g.block_h, kIntOut), columns = round_up(g.block_w, kIntOut);
  s.columns = columns + 2;
  s.pixels = (rows + 2) * s.columns;
  s.padding = round_up(g.k_channels, kInt8Align);
  s.tiles = round_up(rows * columns / (kIntOut * kIntOut), kInt16Rows);
  s.tile_stride = round_up(g.k_block, kGroupBytes) / 2;
  s.input_point = odd_lines(s.tiles * s.tile_stride);
  s.weight_point = odd_lines(s.tile_stride * kPanel);
  s.sum_panel = s.tiles * kPanel;
  s.sum_point = odd_lines(g.task_panels * s.sum_panel);
  s.results = kIntOut * columns * kInt8Columns;
  return s;
}

// Channels [k0, k0 + depth) of all tiles -> inputs; adds up their own products: (point, tile).
inline void transform_int8_inputs(const int8_t* const* pixels, const WinogradTiles& tiles, int64_t k0, int64_t depth,
                                  const Int8WinogradScratch& s, int32_t* inputs, int32_t* row_sums) {
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int8_t* const* from = pixels + tile / tiles.columns * kIntOut * s.columns + tile % tiles.columns * kIntOut;
    int32_t* to = inputs + tile * s.tile_stride;
    vi own[kIntPoints] = {};
    for (int64_t c = k0; c < k0 + depth; c += kGroupBytes, to += 2 * VL) {
      vs even[kIntPoints], odd[kIntPoints];              // (column, point of rows)
#pragma GCC unroll 4
      for (int x = 0; x < kIntIn; ++x) {
        vs even_column[kIntIn], odd_column[kIntIn];
#pragma GCC unroll 4
        for (int y = 0; y < kIntIn; ++y) {
          const vi bytes = *reinterpret_cast<const vi_bytes*>(from[y * s.columns + x] + c);
          even_column[y] = even_channels(bytes);
          odd_column[y] = odd_channels(bytes);
        }
        int8_winograd_input(even_column, even + x * kIntIn);
        int8_winograd_input(odd_column, odd + x * kIntIn);
      }
#pragma GCC unroll 4
      for (int y = 0; y < kIntIn; ++y) {
        const vs even_row[] = {even[y], even[kIntIn + y], even[2 * kIntIn + y], even[3 * kIntIn + y]};
        const vs odd_row[] = {odd[y], odd[kIntIn + y], odd[2 * kIntIn + y], odd[3 * kIntIn + y]};
        vs even_points[kIntIn], odd_points[kIntIn];
        int8_winograd_input(even_row, even_points);
        int8_winograd_input(odd_row, odd_points);
#pragma GCC unroll 4
        for (int x = 0; x < kIntIn; ++x) {
          const vi pairs = reinterpret_cast<vi>(even_points[x]), partners = reinterpret_cast<vi>(odd_points[x]);
          store_quads(to + (y * kIntIn + x) * s.input_point, pairs, partners);
          own[y * kIntIn + x] = dot2(own[y * kIntIn + x], pairs, partners);
        }
      }
    }
    for (int64_t point = 0; point < kIntPoints; ++point) row_sums[point * s.tiles + tile] += sum_lanes(own[point]);
  }
}

// Nine weights of VL columns and two k -> 16 points.
inline void transform_int8_weights(const vs* taps, vs* out) {
  vs half[3 * kIntIn];                                   // (column, point of rows)
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    const vs column[3] = {taps[x], taps[3 + x], taps[6 + x]};
    int8_winograd_weight(column, half + x * kIntIn);
  }
#pragma GCC unroll 4
  for (int y = 0; y < kIntIn; ++y) {
    const vs row[3] = {half[y], half[kIntIn + y], half[2 * kIntIn + y]};
    int8_winograd_weight(row, out + y * kIntIn);
  }
}

// Channels [k0, k0 + depth) of a panel -> weights, zeros from there to the end of a group; adds up their own products: (point, 16).
inline void transform_int8_panel(const GemmArgs& g, int64_t panel, int64_t k0, int64_t depth, const Int8WinogradScratch& s,
                                 int32_t* weights, int32_t* column_sums) {
  const int64_t tap = g.k_channels * kPanel;
  const int8_t* from = static_cast<const int8_t*>(g.weight) + panel * 9 * tap + k0 * kPanel;
  for (int64_t k = 0; k < round_up(depth, kGroupBytes); k += 4, weights += 2 * kPanel) {
    for (int64_t j = 0; j < kPanel; j += VL) {
      vs even[9] = {}, odd[9] = {}, even_points[kIntPoints], odd_points[kIntPoints];
      if (k < depth) {
#pragma GCC unroll 9
        for (int i = 0; i < 9; ++i) {
          const vi bytes = *reinterpret_cast<const vi_bytes*>(from + i * tap + k * kPanel + 4 * j);
          even[i] = reinterpret_cast<vs>(even_bytes(bytes));
          odd[i] = reinterpret_cast<vs>(odd_bytes(bytes));
        }
      }
      transform_int8_weights(even, even_points);
      transform_int8_weights(odd, odd_points);
#pragma GCC unroll 16
      for (int64_t point = 0; point < kIntPoints; ++point) {
        const vi pairs = reinterpret_cast<vi>(even_points[point]), partners = reinterpret_cast<vi>(odd_points[point]);
        int32_t* own = column_sums + point * kPanel + j;
        store_int(weights + point * s.weight_point + j, pairs);
        store_int(weights + point * s.weight_point + kPanel + j, partners);
        store_int(own, dot2(load_int(own), pairs, partners));
      }
    }
  }
}

// sums (+)= inputs * weights, at every point.
inline void multiply_int8_points(const int32_t* inputs, const int32_t* weights, int64_t tiles, int64_t quads,
                                 const Int8WinogradScratch& s, int32_t* sums, bool accumulate) {
  for (int64_t point = 0; point < kIntPoints; ++point) {
    const int32_t* rows[kInt16Rows];
    for (int64_t m = 0; m < tiles; m += kInt16Rows) {
      for (int64_t r = 0; r < kInt16Rows; ++r) {
        rows[r] = inputs + point * s.input_point + (m + r < tiles ? m + r : tiles - 1) * s.tile_stride;
      }
      const int64_t count = tiles - m < kInt16Rows ? tiles - m : kInt16Rows;
      multiply_int16(rows, count, quads, weights + point * s.weight_point, sums + point * s.sum_point + m * kPanel, accumulate);
    }
  }
}

// Sums of one panel, and the products that rows and columns contribute alone.
struct Int8PointSums {
  const int32_t *sums, *rows, *columns;
};

// The outputs of a tile, VL columns from `column` on.
inline void transform_int8_outputs(const Int8PointSums& from, int64_t tile, int64_t column, const Int8WinogradScratch& s, vi* out) {
  vu half[kIntIn * kIntOut];                             // (column, output row)
#pragma GCC unroll 4
  for (int x = 0; x < kIntIn; ++x) {
    vu m[kIntIn];
#pragma GCC unroll 4
    for (int y = 0; y < kIntIn; ++y) {
      const int64_t point = y * kIntIn + x;
      const vi own = load_int(from.columns + point * kPanel + column) + from.rows[point * s.tiles + tile];
      m[y] = reinterpret_cast<vu>(load_int(from.sums + point * s.sum_point + tile * kPanel + column) - own);
    }
    half[x * kIntOut] = m[0] + m[1] + m[2];
    half[x * kIntOut + 1] = m[1] - m[2] - m[3];
  }
#pragma GCC unroll 2
  for (int y = 0; y < kIntOut; ++y) {
    const vu m[] = {half[y], half[kIntOut + y], half[2 * kIntOut + y], half[3 * kIntOut + y]};
    out[y * kIntOut] = reinterpret_cast<vi>(m[0] + m[1] + m[2]) >> 2;
    out[y * kIntOut + 1] = reinterpret_cast<vi>(m[1] - m[2] - m[3]) >> 2;
  }
}

// Sums of a panel -> output pixels, a row of tiles at a time.
inline void finish_int8_panel(const GemmArgs& g, const GemmTask& t, const WinogradTiles& tiles, int64_t panel, const Int8PointSums& from,
                              const Int8WinogradScratch& s, int32_t* results) {
  const int64_t pixel0 = (t.image * g.out_h + t.y0) * g.out_w + t.x0;
  Int8Columns value;
  read_columns(g, panel * kPanel, kPanel, &value);
  constexpr int64_t kMostPixels = 64;
  int64_t pixels[kMostPixels];
  Int8Sums sums = {results, nullptr, pixels, 0, panel * kPanel};
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int64_t y0 = tile / tiles.columns * kIntOut, x0 = tile % tiles.columns * kIntOut;
    for (int64_t j = 0; j < kPanel; j += VL) {
      vi out[kIntOut * kIntOut];
      transform_int8_outputs(from, tile, j, s, out);
      int64_t row = sums.rows;
      for (int64_t i = 0; i < kIntOut * kIntOut; ++i) {
        const int64_t y = y0 + i / kIntOut, x = x0 + i % kIntOut;
        if (y >= t.h || x >= t.w) continue;
        pixels[row] = pixel0 + y * g.out_w + x;
        store_int(results + row++ * kInt8Columns + j, out[i]);
      }
      if (j + VL == kPanel) sums.rows = row;
    }
    if (tile % tiles.columns == tiles.columns - 1) {
      finish_sums<kPanel>(g, t.image, sums, value, value);
      sums.rows = 0;
    }
  }
}

}  // namespace

static int64_t winograd_int8_scratch_bytes(const GemmArgs* args) {
  const Int8WinogradScratch s = int8_winograd_scratch(*args);
  const int64_t ints = kIntPoints * (s.input_point + s.weight_point + s.sum_point + args->task_panels * kPanel + s.tiles) + s.results;
  return ints * static_cast<int64_t>(sizeof(int32_t)) + s.pixels * static_cast<int64_t>(sizeof(int8_t*)) + s.padding;
}

static void winograd_int8(const GemmArgs* args, int64_t task, void* scratch) {
  const GemmArgs& g = *args;
  const Int8WinogradScratch s = int8_winograd_scratch(g);
  const GemmTask t = gemm_task(g, task);
  int32_t* inputs = static_cast<int32_t*>(scratch);
  int32_t* weights = inputs + kIntPoints * s.input_point;
  int32_t* sums = weights + kIntPoints * s.weight_point;
  int32_t* column_sums = sums + kIntPoints * s.sum_point;
  int32_t* row_sums = column_sums + kIntPoints * g.task_panels * kPanel;
  int32_t* results = row_sums + kIntPoints * s.tiles;
  memset(column_sums, 0, static_cast<size_t>(results - column_sums) * sizeof(int32_t));
  const int8_t** pixels = reinterpret_cast<const int8_t**>(results + s.results);
  int8_t* padding = reinterpret_cast<int8_t*>(pixels + s.pixels);
  pad_int8_pixel(g, s.padding, padding);
  const WinogradTiles tiles = {(t.h + kIntOut - 1) / kIntOut, (t.w + kIntOut - 1) / kIntOut};
  const TileRegion region = {t.image, t.y0 - g.pad_top, t.x0 - g.pad_left, tiles.rows * kIntOut + 2, tiles.columns * kIntOut + 2};
  for (int64_t y = 0; y < region.h; ++y) {
    for (int64_t x = 0; x < region.w; ++x) {
      const int8_t* pixel = int8_pixel(g, region, y, x);
      pixels[y * s.columns + x] = pixel ? pixel : padding;
    }
  }
  for (int64_t k0 = 0; k0 < g.k_channels; k0 += g.k_block) {
    const int64_t depth = g.k_channels - k0 < g.k_block ? g.k_channels - k0 : g.k_block;
    transform_int8_inputs(pixels, tiles, k0, depth, s, inputs, row_sums);
    for (int64_t p = 0; p < t.panels; ++p) {
      transform_int8_panel(g, t.panel0 + p, k0, depth, s, weights, column_sums + p * kIntPoints * kPanel);
      multiply_int8_points(inputs, weights, tiles.count(), round_up(depth, kGroupBytes) / 4, s, sums + p * s.sum_panel, k0 > 0);
    }
  }
  for (int64_t p = 0; p < t.panels; ++p) {
    const Int8PointSums from = {sums + p * s.sum_panel, row_sums, column_sums + p * kIntPoints * kPanel};
    finish_int8_panel(g, t, tiles, t.panel0 + p, from, s, results);
  }
  sum_output(g, t, task);
}
