// Convolution and linear layers as implicit GEMM.
//
// A task computes block_h x block_w output pixels times task_panels panels. For each block of k_block channels the loader
// fills the A tile once, then the register tile runs over panels and rows, adding into a fp32 C block that stays in
// the second-level cache; the epilogue adds bias, image bias, activation, gate and residual and stores. Nothing of
// the size of the image is ever copied, and no sum depends on how tasks are spread over threads.

namespace {

constexpr int64_t kMaxTaps = 49;

// Sizes of one task's scratch, in floats.
struct GemmScratch {
  int64_t tile_h, tile_w, tile_stride;    // the A tile with its halo
  int64_t tile, depthwise, b, c;
  int64_t c_rows, c_stride;
};

inline GemmScratch gemm_scratch(const GemmArgs& g) {
  GemmScratch s;
  const int64_t taps = g.depthwise ? 1 : g.kernel_h * g.kernel_w;
  s.tile_h = (g.block_h - 1) * g.stride_h + g.kernel_h;
  s.tile_w = (g.block_w - 1) * g.stride_w + g.kernel_w;
  // An odd number of cache lines between pixels, so that the rows of a register tile do not share one L1 set.
  s.tile_stride = g.k_block + (g.k_block % 32 == 0 ? 16 : 0);
  s.tile = s.tile_h * s.tile_w * s.tile_stride;
  s.depthwise = g.depthwise ? g.block_h * g.block_w * s.tile_stride : 0;
  s.b = g.weight_dtype != DType::fp32 ? taps * g.k_block * kTileColumns : 0;
  s.c_rows = round_up(g.block_h * g.block_w, kTileRows);
  s.c_stride = g.task_panels * (g.gated ? 2 : 1) * kPanel;
  s.c = s.c_rows * s.c_stride;
  return s;
}

struct GemmTask {
  int64_t image, y0, x0, h, w;       // output pixels
  int64_t panel0, panels;            // of the output (gated: of its first half)
};

inline GemmTask gemm_task(const GemmArgs& g, int64_t task) {
  GemmTask t;
  const int64_t panel_block = task % g.panel_blocks;
  int64_t block = task / g.panel_blocks;
  t.x0 = block % g.blocks_x * g.block_w;
  block /= g.blocks_x;
  t.y0 = block % g.blocks_y * g.block_h;
  t.image = block / g.blocks_y;
  t.h = g.out_h - t.y0 < g.block_h ? g.out_h - t.y0 : g.block_h;
  t.w = g.out_w - t.x0 < g.block_w ? g.out_w - t.x0 : g.block_w;
  const int64_t panels = g.gated ? g.panels / 2 : g.panels;
  t.panel0 = panel_block * g.task_panels;
  t.panels = panels - t.panel0 < g.task_panels ? panels - t.panel0 : g.task_panels;
  return t;
}

// fp16 or int8 weights of one group of panels, as the register tile wants them: (panel, tap, k, 16).
inline void widen_weights(const GemmArgs& g, int64_t panel0, int64_t panels, int64_t k0, int64_t taps, int64_t depth, float* b) {
  const int64_t tap_weights = g.k_channels * kPanel;
  for (int64_t p = panel0; p < panel0 + panels; ++p) {
    for (int64_t tap = 0; tap < taps; ++tap, b += depth * kPanel) {
      load_weights(g, p, (p * taps + tap) * tap_weights + k0 * kPanel, depth * kPanel, b);
    }
  }
}

// Channels of one pass: [c0, c0 + depth) of a source, which begin at `k0` of K. Depth 0: K is at its end.
struct KBlock {
  int source;
  int64_t c0, k0, depth;
};

inline KBlock k_block_from(const GemmArgs& g, int source, int64_t c0, int64_t k0) {
  if (source < g.num_sources && c0 == g.sources[source].channels) c0 = 0, ++source;
  if (source == g.num_sources) return {source, 0, k0, 0};
  const int64_t left = g.sources[source].channels - c0;
  return {source, c0, k0, left < g.k_block ? left : g.k_block};
}

inline KBlock k_block_after(const GemmArgs& g, const KBlock& k) { return k_block_from(g, k.source, k.c0 + k.depth, k.k0 + k.depth); }

// Pixels in scratch.
struct LoadedTile {
  const float* data;
  int64_t width, stride;        // pixels of a row, floats of a pixel
};

// Channels [k0, k0 + depth) of `panels` weight panels from `panel0` on.
struct WeightBlock {
  int64_t panel0, panels;
  int64_t k0, depth;
};

// One pass over K: the channels of a block of weights in every tap, all pixels of the task. `next` is where the pass to
// come reads its first weights.
inline void multiply_block(const GemmArgs& g, const GemmTask& t, const LoadedTile& a, const WeightBlock& w, const WeightBlock& next,
                           float* b_scratch, float* c, int64_t c_stride, bool accumulate) {
  const bool direct = g.depthwise;
  const int64_t kernel_h = direct ? 1 : g.kernel_h, kernel_w = direct ? 1 : g.kernel_w;
  const int64_t stride_h = direct ? 1 : g.stride_h, stride_w = direct ? 1 : g.stride_w;
  int64_t tap_offsets[kMaxTaps];
  for (int64_t i = 0; i < kernel_h * kernel_w; ++i) tap_offsets[i] = (i / kernel_w * a.width + i % kernel_w) * a.stride;
  TileArgs tile;
  tile.tap_offsets = tap_offsets;
  tile.taps = kernel_h * kernel_w;
  tile.depth = w.depth;
  tile.c_stride = c_stride;
  tile.accumulate = accumulate;
  const int64_t weight_tap = g.k_channels * kPanel, weight_panel = tile.taps * weight_tap;
  const int64_t weight_bytes = element_bytes(g.weight_dtype);
  tile.ahead.panel_bytes = weight_panel * weight_bytes;
  tile.ahead.tap_bytes = weight_tap * weight_bytes;
  const int64_t pixels = t.h * t.w;
  for (int64_t p = 0; p < w.panels;) {
    const int group = panel_group(w.panels - p);
    const int64_t offset = (w.panel0 + p) * weight_panel + w.k0 * kPanel;
    if (g.weight_dtype != DType::fp32) {
      widen_weights(g, w.panel0 + p, group, w.k0, tile.taps, w.depth, b_scratch);
      tile.b = b_scratch;
      tile.b_tap = w.depth * kPanel;
      tile.b_panel = tile.taps * tile.b_tap;
    } else {
      tile.b = static_cast<const float*>(g.weight) + offset;
      tile.b_tap = weight_tap;
      tile.b_panel = weight_panel;
    }
    const bool last = p + group == w.panels;
    const int64_t ahead = last ? next.panel0 * weight_panel + next.k0 * kPanel : offset + group * weight_panel;
    tile.ahead.from = element(g.weight, ahead, g.weight_dtype);
    const int64_t ahead_lines = (last ? next.depth : w.depth) * kPanel * weight_bytes / kLineBytes;
    tile.ahead.last = 0;
    int64_t y = 0, x = 0;
    for (int64_t m = 0; m < pixels; m += kTileRows) {
      for (int r = 0; r < kTileRows; ++r) {
        tile.rows[r] = a.data + (y * stride_h * a.width + x * stride_w) * a.stride;
        if (m + r + 1 < pixels && ++x == t.w) x = 0, ++y;
      }
      tile.c = c + m * c_stride + p * kPanel;
      tile.ahead.first = tile.ahead.last;
      tile.ahead.last = m + kTileRows < pixels ? ahead_lines * (m + kTileRows) / pixels * kLineBytes : ahead_lines * kLineBytes;
      run_tile(tile, group);
    }
    p += group;
  }
}

// What follows a product that is not gated: bias, image bias, activation, residual; then VL columns of a pixel are stored.
inline void finish_product(const GemmArgs& g, int64_t image, int64_t pixel, int64_t column, vf x) {
  if (g.bias) x += load(g.bias + column);
  if (g.image_bias) x += load(g.image_bias + image * g.image_bias_stride + column);
  if (g.activation != Activation::none) x = activate(x, g.activation);
  if (g.residual.data) x += load_as(g.residual.data, pixel * g.residual.stride + column, g.residual.dtype);
  store_as(g.output.data, pixel * g.output.stride + column, g.output.dtype, x);
}

inline void gemm_epilogue(const GemmArgs& g, const GemmTask& t, const float* c, int64_t c_stride) {
  const int64_t columns = t.panels * kPanel, column0 = t.panel0 * kPanel;
  const int64_t gate = g.task_panels * kPanel;                         // C columns of the second half
  const int64_t gate_column0 = column0 + g.panels / 2 * kPanel;
  for (int64_t i = 0; i < t.h * t.w; ++i) {
    const float* row = c + i * c_stride;
    const int64_t pixel = (t.image * g.out_h + t.y0 + i / t.w) * g.out_w + t.x0 + i % t.w;
    for (int64_t j = 0; j < columns; j += VL) {
      if (!g.gated) {
        finish_product(g, t.image, pixel, column0 + j, load(row + j));
        continue;
      }
      vf x = load(row + j), b = load(row + gate + j);
      if (g.bias) {
        x += load(g.bias + column0 + j);
        b += load(g.bias + gate_column0 + j);
      }
      x *= activate(b, g.activation);
      if (g.residual.data) x += load_as(g.residual.data, pixel * g.residual.stride + column0 + j, g.residual.dtype);
      store_as(g.output.data, pixel * g.output.stride + column0 + j, g.output.dtype, x);
    }
  }
}

// A task's share of what the output's readers need to normalise it.
inline void sum_output(const GemmArgs& g, const GemmTask& t, int64_t task) {
  if (!g.output_sums) return;
  const PixelBlock block = {(t.image * g.out_h + t.y0) * g.out_w + t.x0, t.h, t.w, g.out_w};
  float* row = g.output_sums + task / g.panel_blocks * sums_row(g.output.channels);
  sum_block(g.output, block, t.panel0 * kPanel, (t.panel0 + t.panels) * kPanel, row);
}

}  // namespace

static int64_t gemm_scratch_bytes(const GemmArgs* args) {
  const GemmScratch s = gemm_scratch(*args);
  return (s.tile + s.depthwise + s.b + s.c) * static_cast<int64_t>(sizeof(float));
}

static void gemm(const GemmArgs* args, int64_t task, void* scratch) {
  const GemmArgs& g = *args;
  const GemmScratch s = gemm_scratch(g);
  const GemmTask t = gemm_task(g, task);
  float* tile = static_cast<float*>(scratch);
  float* depthwise = tile + s.tile;
  float* b = depthwise + s.depthwise;
  float* c = b + s.b;
  const TileRegion region = {t.image, t.y0 * g.stride_h - g.pad_top, t.x0 * g.stride_w - g.pad_left,
                             (t.h - 1) * g.stride_h + g.kernel_h, (t.w - 1) * g.stride_w + g.kernel_w};
  KBlock next;
  for (KBlock k = k_block_from(g, 0, 0, 0); k.depth > 0; k = next) {
    next = k_block_after(g, k);
    load_tile(g, region, k.source, k.c0, k.k0, k.depth, tile, s.tile_stride);
    LoadedTile a = {tile, region.w, s.tile_stride};
    if (g.depthwise) {
      depthwise_tile(g, tile, region.w, t.h, t.w, k.k0, k.depth, s.tile_stride, depthwise, s.tile_stride);
      a = {depthwise, t.w, s.tile_stride};
    }
    const WeightBlock block = {t.panel0, t.panels, k.k0, k.depth}, next_block = {t.panel0, t.panels, next.k0, next.depth};
    if (g.gated) {
      WeightBlock gate = block;
      gate.panel0 += g.panels / 2;
      multiply_block(g, t, a, block, gate, b, c, s.c_stride, k.k0 > 0);
      multiply_block(g, t, a, gate, next_block, b, c + g.task_panels * kPanel, s.c_stride, k.k0 > 0);
    } else {
      multiply_block(g, t, a, block, next_block, b, c, s.c_stride, k.k0 > 0);
    }
  }
  gemm_epilogue(g, t, c, s.c_stride);
  sum_output(g, t, task);
}
