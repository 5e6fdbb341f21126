// Convolution and linear layers with int8 weights and int8 input, as implicit GEMM with exact int32 sums.
//
// A task computes block_h x block_w output pixels times task_panels panels, tile by tile over the whole of K; every tile of
// sums becomes floats at once. A convolution's task copies its pixels, halo included, into scratch; a plain product
// (kernel 1x1, same pixels) reads them where they lie.

namespace {

struct Int8Scratch {
  int64_t tile_stride, tile, c;       // bytes
};

inline bool reads_in_place(const GemmArgs& g) { return g.plain_product && (kInt8Bytes == 1 || g.sources[0].widened); }

inline Int8Scratch int8_scratch(const GemmArgs& g) {
  Int8Scratch s;
  s.tile_stride = round_up(g.k_channels, kInt8Align) * kInt8Bytes + kInt8Tail;
  if (s.tile_stride % 128 == 0) s.tile_stride += 64;        // an odd number of cache lines: see gemm_scratch
  const int64_t h = (g.block_h - 1) * g.stride_h + g.kernel_h, w = (g.block_w - 1) * g.stride_w + g.kernel_w;
  s.tile = reads_in_place(g) ? 0 : h * w * s.tile_stride;
  s.c = (g.gated ? 2 : 1) * kInt8Rows * kInt8Columns * static_cast<int64_t>(sizeof(int32_t));
  return s;
}

// The stored pixel at (y, x) of a region; null where padding is.
inline const int8_t* int8_pixel(const GemmArgs& g, const TileRegion& region, int64_t y, int64_t x) {
  const int64_t view_y = region.y + y, view_x = region.x + x;
  if (view_y < 0 || view_y >= g.view_h || view_x < 0 || view_x >= g.view_w) return nullptr;
  const int64_t in_y = g.view_h == g.in_h ? view_y : view_y * g.in_h / g.view_h;
  const int64_t in_x = g.view_w == g.in_w ? view_x : view_x * g.in_w / g.view_w;
  const int64_t pixel = (region.image * g.in_h + in_y) * g.in_w + in_x;
  return static_cast<const int8_t*>(g.sources[0].data) + pixel * g.sources[0].stride;
}

// A pixel of padding: the zero point, then zeros up to `bytes`.
inline void pad_int8_pixel(const GemmArgs& g, int64_t bytes, int8_t* out) {
  const int padding = g.input_zero_point ? *g.input_zero_point + kInt8Offset : kInt8Offset;
  memset(out, padding, static_cast<size_t>(g.k_channels));
  memset(out + g.k_channels, 0, static_cast<size_t>(bytes - g.k_channels));
}

// `count` pixels that follow each other in the input and in the tile.
inline void copy_int8_pixels(int8_t* out, int64_t out_stride, const int8_t* in, int64_t in_stride, int64_t count, int64_t bytes) {
  if (kInt8Bytes == 1 && in_stride == out_stride) {
    memcpy(out, in, static_cast<size_t>((count - 1) * in_stride + bytes));
    return;
  }
  for (int64_t i = 0; i < count; ++i) copy_int8_pixel(out + i * out_stride, in + i * in_stride, bytes);
}

// tile: (region.h, region.w, stride)
inline void load_int8_tile(const GemmArgs& g, const TileRegion& region, int64_t stride, int8_t* tile) {
  const int64_t bytes = round_up(g.k_channels, kInt8Align);
  const bool resized = g.view_h != g.in_h || g.view_w != g.in_w;
  for (int64_t y = 0; y < region.h; ++y, tile += region.w * stride) {
    for (int64_t x = 0, count; x < region.w; x += count) {
      count = 1;
      int8_t* out = tile + x * stride;
      if (const int8_t* pixel = int8_pixel(g, region, y, x)) {
        if (!resized) {
          const int64_t end = g.view_w - region.x;
          count = (region.w < end ? region.w : end) - x;
        }
        copy_int8_pixels(out, stride, pixel, g.sources[0].stride, count, bytes);
        continue;
      }
      write_int8_pixel(out, bytes, true, [&](int8_t* padding) { pad_int8_pixel(g, bytes, padding); });
    }
  }
}

// Rows of a task's block, and where its results go.
struct Int8Block {
  const GemmArgs& g;
  const GemmTask& t;
  const int8_t* a;              // the block's first pixel
  int64_t a_w, a_stride;        // pixels of a row of `a`, bytes of a pixel
  int64_t pixel0;               // output pixel (of all images) of the first row
  bool fetches = false;         // whether the weights that are needed next are brought near
};

constexpr int64_t kKeptWeightBytes = 1 << 20;     // so many stay in the second-level cache from one block of pixels to the next

// Weights that the first block of pixels has read lie near for the others, unless they are many.
inline bool reads_far_weights(const GemmArgs& g, int64_t task) {
  return task < g.panel_blocks || g.panels * kPanel * g.kernel_h * g.kernel_w * g.k_channels > kKeptWeightBytes;
}

// A tile of two panels takes one of a gated layer's values and one of its gates: both stay near while all rows pass.
constexpr bool kInt8GateInTile = kInt8Panels == 2;

// Each tile brings near a share of the panels that come next, as large as its own of the pixels. They lie as the tile's own do.
template <int kPanels>
void fetch_share(const int8_t* next, int64_t first_pixel, int64_t pixels, Int8TileArgs* tile) {
  const int64_t bytes = kPanels * tile->b_panel;
  int64_t from = bytes * first_pixel / pixels & -kLineBytes, to = bytes * (first_pixel + tile->num_rows) / pixels;
  if (tile->b_step != tile->b_panel) {      // two panels apart from each other
    if (from >= tile->b_panel) {
      next += tile->b_step - tile->b_panel;
    } else if (to > tile->b_panel) {
      to = tile->b_panel;
    }
  }
  tile->fetch = next + from;
  tile->fetch_end = next + to;
}

// All rows of the block times one group of panels; `next_panel` is the first of the group that follows.
template <int kPanels, bool kGateInTile>
void int8_panels(const Int8Block& block, int64_t panel, int64_t next_panel, int32_t* c) {
  const GemmArgs& g = block.g;
  const GemmTask& t = block.t;
  constexpr int kRows = int8_rows(kPanels);
  int64_t tap_offsets[kMaxTaps], pixels_of[kInt8Rows];
  Int8TileArgs tile;
  tile.taps = g.kernel_h * g.kernel_w;
  for (int64_t i = 0; i < tile.taps; ++i) tap_offsets[i] = (i / g.kernel_w * block.a_w + i % g.kernel_w) * block.a_stride;
  tile.tap_offsets = tap_offsets;
  tile.depth = g.k_channels;
  tile.b_panel = tile.taps * g.k_channels * kPanel;
  const int64_t to_gate = g.panels / 2 * tile.b_panel;
  tile.b_step = kGateInTile ? to_gate : tile.b_panel;
  const int8_t* b = static_cast<const int8_t*>(g.weight) + panel * tile.b_panel;
  constexpr int kColumns = (kGateInTile ? 1 : kPanels) * static_cast<int>(kPanel);
  Int8Sums sums = {c, c + (kGateInTile ? kPanel : kInt8Rows * kInt8Columns), pixels_of, 0, panel * kPanel};
  Int8Columns value, gate;
  read_columns(g, sums.column, kColumns, &value);
  if (g.gated) read_columns(g, sums.column + g.panels / 2 * kPanel, kColumns, &gate);
  const int64_t pixels = t.h * t.w;
  const bool fetches = block.fetches && next_panel != panel;
  const auto multiply = [&](int64_t m, const int8_t* weights, int32_t* to) {
    tile.b = weights;
    tile.c = to;
    tile.fetch = tile.fetch_end = nullptr;
    if (fetches) fetch_share<kPanels>(weights + (next_panel - panel) * tile.b_panel, m, pixels, &tile);
    int8_tile<kPanels>(tile);
  };
  const int64_t row_step = g.stride_h * block.a_w * block.a_stride, step = g.stride_w * block.a_stride;
  const int8_t* row = block.a;
  int64_t row_pixel = block.pixel0, x = 0;
  for (int64_t m = 0; m < pixels; m += kRows) {
    sums.rows = pixels - m < kRows ? pixels - m : kRows;
    for (int64_t r = 0; r < round_up(sums.rows, int8_row_step(kPanels)); ++r) {
      tile.rows[r] = row + x * step;
      pixels_of[r] = row_pixel + x;
      if (m + r + 1 < pixels && ++x == t.w) x = 0, row += row_step, row_pixel += g.out_w;
    }
    fetch_results(g, sums, kColumns);
    tile.num_rows = static_cast<int>(sums.rows);
    multiply(m, b, c);
    if (g.gated && !kGateInTile) multiply(m, b + to_gate, c + kInt8Rows * kInt8Columns);
    finish_sums<kColumns>(g, t.image, sums, value, gate);
  }
}

constexpr int fewer(int a, int b) { return a < b ? a : b; }

// Panels of the next tile when so many are left. Where a tile takes up to four, three of 8 rows load least; fours fill up what is no
// multiple of three.
inline int64_t int8_group(int64_t left) {
  if (kInt8Panels < 4) return left >= kInt8Panels ? kInt8Panels : 1;
  if (left % 3 == 0 || left == 5) return 3;
  return left >= 4 ? 4 : left;
}

}  // namespace

static int64_t gemm_int8_scratch_bytes(const GemmArgs* args) {
  const Int8Scratch s = int8_scratch(*args);
  return s.tile + s.c;
}

static void gemm_int8(const GemmArgs* args, int64_t task, void* scratch) {
  const GemmArgs& g = *args;
  const Int8Scratch s = int8_scratch(g);
  const GemmTask t = gemm_task(g, task);
  int32_t* c = static_cast<int32_t*>(scratch);
  int8_t* copied = static_cast<int8_t*>(scratch) + s.c;
  Int8Block block = {g, t, copied, t.w, s.tile_stride, (t.image * g.out_h + t.y0) * g.out_w + t.x0,
                     kInt8FetchesAhead && reads_far_weights(g, task)};
  if (reads_in_place(g)) {
    block.a = static_cast<const int8_t*>(g.sources[0].data) + block.pixel0 * g.sources[0].stride;
    block.a_w = g.out_w;
    block.a_stride = g.sources[0].stride;
  } else {
    const TileRegion region = {t.image, t.y0 * g.stride_h - g.pad_top, t.x0 * g.stride_w - g.pad_left,
                               (t.h - 1) * g.stride_h + g.kernel_h, (t.w - 1) * g.stride_w + g.kernel_w};
    load_int8_tile(g, region, s.tile_stride, copied);
    block.a_w = region.w;
  }
  const int64_t next_task_panel = (task + g.tasks_ahead) % g.panel_blocks * g.task_panels;
  int8_tile_begin();
  const bool gate_in_tile = kInt8GateInTile && g.gated;
  for (int64_t p = 0, group; p < t.panels; p += group) {
    group = gate_in_tile ? 1 : int8_group(t.panels - p);
    const int64_t panel = t.panel0 + p, next_panel = p + group < t.panels ? panel + group : next_task_panel;
    if (gate_in_tile) {
      int8_panels<fewer(2, kInt8Panels), kInt8GateInTile>(block, panel, next_panel, c);
      continue;
    }
    switch (group) {
      case 4: int8_panels<fewer(4, kInt8Panels), false>(block, panel, next_panel, c); break;
      case 3: int8_panels<fewer(3, kInt8Panels), false>(block, panel, next_panel, c); break;
      case 2: int8_panels<fewer(2, kInt8Panels), false>(block, panel, next_panel, c); break;
      default: int8_panels<1, false>(block, panel, next_panel, c);
    }
  }
  int8_tile_end();
  sum_output(g, t, task);
}
