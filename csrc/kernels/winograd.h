// 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3): 36 products for 16 outputs where the direct way takes 144.
//
// A task computes block_h x block_w output pixels, in tiles of 4x4, times task_panels panels. For each block of channels the
// loader brings the pixels and they are transformed to 36 points; for each group of panels so are the weights, into
// scratch; then every point is a product of matrices (tiles x channels times channels x columns). The sums of all points are
// transformed back at the end.
//
// The points are 0, +-2/3, +-3/2 and infinity: with the usual +-1, +-2 rounding errors are twice as large.

namespace {

constexpr int64_t kWinogradOut = 4, kWinogradIn = 6, kWinogradPoints = 36;
constexpr float kP = 2.0f / 3, kQ = 1.5f, kP2 = kP * kP, kQ2 = kQ * kQ;      // kP * kQ is 1

// Six numbers in a row of the input, as polynomials through the points.
inline void winograd_input(const vf* x, vf* out) {
  const vf even_p = x[4] - kQ2 * x[2], odd_p = kP * (x[3] - kQ2 * x[1]);
  const vf even_q = x[4] - kP2 * x[2], odd_q = kQ * (x[3] - kP2 * x[1]);
  out[0] = x[0] - (kP2 + kQ2) * x[2] + x[4];
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  out[3] = even_q + odd_q;
  out[4] = even_q - odd_q;
  out[5] = x[1] - (kP2 + kQ2) * x[3] + x[5];
}

// Three weights in a row.
inline void winograd_weight(const vf* w, vf* out) {
  constexpr float scale_p = 1 / (2 * kP2 * (kP2 - kQ2)), scale_q = 1 / (2 * kQ2 * (kQ2 - kP2));
  const vf even_p = scale_p * (w[0] + kP2 * w[2]), odd_p = scale_p * kP * w[1];
  const vf even_q = scale_q * (w[0] + kQ2 * w[2]), odd_q = scale_q * kQ * w[1];
  out[0] = w[0];
  out[1] = even_p + odd_p;
  out[2] = even_p - odd_p;
  out[3] = even_q + odd_q;
  out[4] = even_q - odd_q;
  out[5] = w[2];
}

// Products at six points become four outputs in a row.
inline void winograd_output(const vf* m, vf* out) {
  const vf sum_p = m[1] + m[2], difference_p = m[1] - m[2], sum_q = m[3] + m[4], difference_q = m[3] - m[4];
  out[0] = m[0] + sum_p + sum_q;
  out[1] = kP * difference_p + kQ * difference_q;
  out[2] = kP2 * sum_p + kQ2 * sum_q;
  out[3] = kP * kP2 * difference_p + kQ * kQ2 * difference_q + m[5];
}

// Sizes of one task's scratch, in floats. Strides of points are odd numbers of cache lines: all points of a tile are written
// one after the other and must not share one set of the cache.
struct WinogradScratch {
  int64_t pixel_stride, loaded;               // the block's pixels with their halo
  int64_t tiles, tile_stride, input_point;    // inputs: (point, tile, channel)
  int64_t weight_point;                       // weights: (point, panel, channel, 16)
  int64_t sum_stride, sum_point;              // sums: (point, tile, column)
};

inline int64_t odd_lines(int64_t floats) { return floats / kPanel % 2 ? floats : floats + kPanel; }

inline WinogradScratch winograd_scratch(const GemmArgs& g) {
  WinogradScratch s;
  s.pixel_stride = s.tile_stride = odd_lines(g.k_block);
  const int64_t rows = round_up(g.block_h, kWinogradOut), columns = round_up(g.block_w, kWinogradOut);
  s.loaded = (rows + 2) * (columns + 2) * s.pixel_stride;
  s.tiles = round_up(rows * columns / (kWinogradOut * kWinogradOut), kTileRows);
  s.input_point = odd_lines(s.tiles * s.tile_stride);
  s.weight_point = odd_lines(g.k_block * kTileColumns);
  s.sum_stride = g.task_panels * kPanel;
  s.sum_point = odd_lines(s.tiles * s.sum_stride);
  return s;
}

// Tiles of a task: `rows` x `columns` of them, the last ones perhaps not whole.
struct WinogradTiles {
  int64_t rows, columns;
  int64_t count() const { return rows * columns; }
};

// loaded: (4 rows + 2, 4 columns + 2, pixel_stride) -> inputs
inline void transform_inputs(const float* loaded, const WinogradTiles& tiles, int64_t depth, const WinogradScratch& s, float* inputs) {
  const int64_t width = tiles.columns * kWinogradOut + 2;
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int64_t y = tile / tiles.columns * kWinogradOut, x = tile % tiles.columns * kWinogradOut;
    const float* from = loaded + (y * width + x) * s.pixel_stride;
    float* to = inputs + tile * s.tile_stride;
    for (int64_t c = 0; c < depth; c += VL) {
      vf half[kWinogradPoints];                    // (column, point of rows)
#pragma GCC unroll 6
      for (int j = 0; j < kWinogradIn; ++j) {
        vf column[kWinogradIn];
#pragma GCC unroll 6
        for (int i = 0; i < kWinogradIn; ++i) column[i] = load(from + (i * width + j) * s.pixel_stride + c);
        winograd_input(column, half + j * kWinogradIn);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kWinogradIn; ++i) {
        vf row[kWinogradIn], points[kWinogradIn];
#pragma GCC unroll 6
        for (int j = 0; j < kWinogradIn; ++j) row[j] = half[j * kWinogradIn + i];
        winograd_input(row, points);
#pragma GCC unroll 6
        for (int j = 0; j < kWinogradIn; ++j) store(to + (i * kWinogradIn + j) * s.input_point + c, points[j]);
      }
    }
  }
}

// Channels [k0, k0 + depth) of `panels` panels from `panel0` on -> weights
inline void transform_weights(const GemmArgs& g, int64_t panel0, int64_t panels, int64_t k0, int64_t depth, const WinogradScratch& s,
                              float* weights) {
  const int64_t tap = g.k_channels * kPanel;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t from = (panel0 + p) * 9 * tap + k0 * kPanel;
    float* to = weights + p * depth * kPanel;
    for (int64_t i = 0; i < depth * kPanel; i += VL) {
      vf half[3 * kWinogradIn];                    // (column, point of rows)
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) {
        vf column[3];
#pragma GCC unroll 3
        for (int y = 0; y < 3; ++y) column[y] = load_weight(g, panel0 + p, from + (y * 3 + x) * tap + i);
        winograd_weight(column, half + x * kWinogradIn);
      }
#pragma GCC unroll 6
      for (int y = 0; y < kWinogradIn; ++y) {
        const vf row[3] = {half[y], half[kWinogradIn + y], half[2 * kWinogradIn + y]};
        vf points[kWinogradIn];
        winograd_weight(row, points);
#pragma GCC unroll 6
        for (int x = 0; x < kWinogradIn; ++x) store(to + (y * kWinogradIn + x) * s.weight_point + i, points[x]);
      }
    }
  }
}

// sums (+)= inputs * weights, at every point. `next`: where the weights that are transformed next begin.
inline void multiply_points(const GemmArgs& g, const float* inputs, const float* weights, int64_t tiles, int64_t panels, int64_t depth,
                            const void* next, const WinogradScratch& s, float* sums, bool accumulate) {
  static const int64_t no_offset[1] = {0};
  TileArgs tile;
  tile.tap_offsets = no_offset;
  tile.taps = 1;
  tile.depth = depth;
  tile.b_panel = depth * kPanel;
  tile.b_tap = 0;
  tile.c_stride = s.sum_stride;
  tile.accumulate = accumulate;
  const int64_t weight_bytes = element_bytes(g.weight_dtype);
  const int64_t tap = g.k_channels * kPanel, lines = depth * kPanel * weight_bytes / kLineBytes;
  for (int64_t point = 0; point < kWinogradPoints; ++point) {
    tile.b = weights + point * s.weight_point;
    tile.ahead = {nullptr, 9 * tap * weight_bytes, 0, 0, 0};      // while a point is at work, one tap is fetched
    if (next && point < 9) tile.ahead.from = element(next, point * tap, g.weight_dtype);
    for (int64_t m = 0; m < tiles; m += kTileRows) {
      for (int64_t r = 0; r < kTileRows; ++r) {
        tile.rows[r] = inputs + point * s.input_point + (m + r < tiles ? m + r : tiles - 1) * s.tile_stride;
      }
      tile.c = sums + point * s.sum_point + m * s.sum_stride;
      if (tile.ahead.from) {
        tile.ahead.first = tile.ahead.last;
        tile.ahead.last = m + kTileRows < tiles ? lines * (m + kTileRows) / tiles * kLineBytes : lines * kLineBytes;
      }
      run_tile(tile, static_cast<int>(panels));
    }
  }
}

// sums -> output pixels
inline void transform_outputs(const GemmArgs& g, const GemmTask& t, const WinogradTiles& tiles, const float* sums, const WinogradScratch& s) {
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    const int64_t y0 = tile / tiles.columns * kWinogradOut, x0 = tile % tiles.columns * kWinogradOut;
    const int64_t h = t.h - y0 < kWinogradOut ? t.h - y0 : kWinogradOut, w = t.w - x0 < kWinogradOut ? t.w - x0 : kWinogradOut;
    const int64_t pixel = (t.image * g.out_h + t.y0 + y0) * g.out_w + t.x0 + x0;
    for (int64_t j = 0; j < t.panels * kPanel; j += VL) {
      const float* from = sums + tile * s.sum_stride + j;
      vf half[kWinogradIn * kWinogradOut];         // (column, output row)
#pragma GCC unroll 6
      for (int x = 0; x < kWinogradIn; ++x) {
        vf column[kWinogradIn];
#pragma GCC unroll 6
        for (int y = 0; y < kWinogradIn; ++y) column[y] = load(from + (y * kWinogradIn + x) * s.sum_point);
        winograd_output(column, half + x * kWinogradOut);
      }
      for (int64_t y = 0; y < h; ++y) {
        vf row[kWinogradIn], out[kWinogradOut];
#pragma GCC unroll 6
        for (int x = 0; x < kWinogradIn; ++x) row[x] = half[x * kWinogradOut + y];
        winograd_output(row, out);
        for (int64_t x = 0; x < w; ++x) finish_product(g, t.image, pixel + y * g.out_w + x, t.panel0 * kPanel + j, out[x]);
      }
    }
  }
}

}  // namespace

static int64_t winograd_scratch_bytes(const GemmArgs* args) {
  const WinogradScratch s = winograd_scratch(*args);
  const int64_t points = s.input_point + s.weight_point + s.sum_point;
  return (s.loaded + kWinogradPoints * points) * static_cast<int64_t>(sizeof(float));
}

static void winograd(const GemmArgs* args, int64_t task, void* scratch) {
  const GemmArgs& g = *args;
  const WinogradScratch s = winograd_scratch(g);
  const GemmTask t = gemm_task(g, task);
  float* loaded = static_cast<float*>(scratch);
  float* inputs = loaded + s.loaded;
  float* weights = inputs + kWinogradPoints * s.input_point;
  float* sums = weights + kWinogradPoints * s.weight_point;
  const WinogradTiles tiles = {(t.h + kWinogradOut - 1) / kWinogradOut, (t.w + kWinogradOut - 1) / kWinogradOut};
  const TileRegion region = {t.image, t.y0 - g.pad_top, t.x0 - g.pad_left, tiles.rows * kWinogradOut + 2, tiles.columns * kWinogradOut + 2};
  const int64_t panel = 9 * g.k_channels * kPanel;
  KBlock next;
  for (KBlock k = k_block_from(g, 0, 0, 0); k.depth > 0; k = next) {
    next = k_block_after(g, k);
    load_tile(g, region, k.source, k.c0, k.k0, k.depth, loaded, s.pixel_stride);
    transform_inputs(loaded, tiles, k.depth, s, inputs);
    for (int64_t p = 0, group; p < t.panels; p += group) {
      group = panel_group(t.panels - p);
      transform_weights(g, t.panel0 + p, group, k.k0, k.depth, s, weights);
      const bool last = p + group == t.panels;
      const int64_t ahead = last ? t.panel0 * panel + next.k0 * kPanel : (t.panel0 + p + group) * panel + k.k0 * kPanel;
      const void* fetched = last && next.depth == 0 ? nullptr : element(g.weight, ahead, g.weight_dtype);
      multiply_points(g, inputs, weights, tiles.count(), group, k.depth, fetched, s, sums + p * kPanel, k.k0 > 0);
    }
  }
  transform_outputs(g, t, tiles, sums, s);
  sum_output(g, t, task);
}
