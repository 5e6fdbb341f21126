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
  s.b = g.weight_dtype == DType::fp16 ? taps * g.k_block * kTileColumns : 0;
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

// fp16 weights of one group of panels, as the register tile wants them: (panel, tap, k, 16).
inline void widen_weights(const uint16_t* source, int64_t source_panel, int64_t source_tap, int64_t panels, int64_t taps,
                          int64_t depth, float* b) {
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const uint16_t* from = source + p * source_panel + tap * source_tap;
      for (int64_t i = 0; i < depth * kPanel; i += VL, b += VL) store(b, load_half(from + i));
    }
  }
}

// One pass over K: channels [k0, k0 + depth) of every tap, all panels of a run, all pixels of the task.
inline void multiply_block(const GemmArgs& g, const GemmTask& t, const float* a, int64_t a_w, int64_t a_stride, bool direct,
                           int64_t k0, int64_t depth, int64_t panel0, int64_t panels, float* b_scratch, float* c,
                           int64_t c_stride, bool accumulate) {
  const int64_t kernel_h = direct ? 1 : g.kernel_h, kernel_w = direct ? 1 : g.kernel_w;
  const int64_t stride_h = direct ? 1 : g.stride_h, stride_w = direct ? 1 : g.stride_w;
  int64_t tap_offsets[kMaxTaps];
  for (int64_t i = 0; i < kernel_h * kernel_w; ++i) tap_offsets[i] = (i / kernel_w * a_w + i % kernel_w) * a_stride;
  TileArgs tile;
  tile.tap_offsets = tap_offsets;
  tile.taps = kernel_h * kernel_w;
  tile.depth = depth;
  tile.c_stride = c_stride;
  tile.accumulate = accumulate;
  const int64_t weight_tap = g.k_channels * kPanel, weight_panel = tile.taps * weight_tap;
  const int64_t pixels = t.h * t.w;
  for (int64_t p = 0; p < panels; p += kTilePanels) {
    const int group = panels - p < kTilePanels ? 1 : kTilePanels;
    const int64_t offset = (panel0 + p) * weight_panel + k0 * kPanel;
    if (g.weight_dtype == DType::fp16) {
      widen_weights(static_cast<const uint16_t*>(g.weight) + offset, weight_panel, weight_tap, group, tile.taps, depth, b_scratch);
      tile.b = b_scratch;
      tile.b_tap = depth * kPanel;
      tile.b_panel = tile.taps * tile.b_tap;
    } else {
      tile.b = static_cast<const float*>(g.weight) + offset;
      tile.b_tap = weight_tap;
      tile.b_panel = weight_panel;
    }
    int64_t y = 0, x = 0;
    for (int64_t m = 0; m < pixels; m += kTileRows) {
      for (int r = 0; r < kTileRows; ++r) {
        tile.rows[r] = a + (y * stride_h * a_w + x * stride_w) * a_stride;
        if (m + r + 1 < pixels && ++x == t.w) x = 0, ++y;
      }
      tile.c = c + m * c_stride + p * kPanel;
      if (group == kTilePanels) {
        gemm_tile<kTilePanels>(tile);
      } else {
        run_tile(tile, group);
      }
    }
  }
}

inline void gemm_epilogue(const GemmArgs& g, const GemmTask& t, const float* c, int64_t c_stride) {
  const int64_t columns = t.panels * kPanel, column0 = t.panel0 * kPanel;
  const int64_t gate = g.task_panels * kPanel;                         // C columns of the second half
  const int64_t gate_column0 = column0 + g.panels / 2 * kPanel;
  const float* image_bias = g.image_bias ? g.image_bias + t.image * g.image_bias_stride : nullptr;
  for (int64_t i = 0; i < t.h * t.w; ++i) {
    const float* row = c + i * c_stride;
    const int64_t pixel = (t.image * g.out_h + t.y0 + i / t.w) * g.out_w + t.x0 + i % t.w;
    for (int64_t j = 0; j < columns; j += VL) {
      vf x = load(row + j);
      if (g.bias) x += load(g.bias + column0 + j);
      if (g.gated) {
        vf b = load(row + gate + j);
        if (g.bias) b += load(g.bias + gate_column0 + j);
        x *= activate(b, g.activation);
      } else {
        if (image_bias) x += load(image_bias + column0 + j);
        if (g.activation != Activation::none) x = activate(x, g.activation);
      }
      if (g.residual.data) x += load_as(g.residual.data, pixel * g.residual.stride + column0 + j, g.residual.dtype);
      store_as(g.output.data, pixel * g.output.stride + column0 + j, g.output.dtype, x);
    }
  }
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
  bool accumulate = false;
  int64_t source_k0 = 0;
  for (int source = 0; source < g.num_sources; ++source) {
    const int64_t channels = g.sources[source].channels;
    for (int64_t c0 = 0; c0 < channels; c0 += g.k_block) {
      const int64_t depth = channels - c0 < g.k_block ? channels - c0 : g.k_block;
      const int64_t k0 = source_k0 + c0;
      load_tile(g, region, source, c0, k0, depth, tile, s.tile_stride);
      const float* a = tile;
      int64_t a_w = region.w;
      if (g.depthwise) {
        depthwise_tile(g, tile, region.w, t.h, t.w, k0, depth, s.tile_stride, depthwise, s.tile_stride);
        a = depthwise;
        a_w = t.w;
      }
      multiply_block(g, t, a, a_w, s.tile_stride, g.depthwise != nullptr, k0, depth, t.panel0, t.panels, b, c, s.c_stride,
                     accumulate);
      if (g.gated) {
        multiply_block(g, t, a, a_w, s.tile_stride, g.depthwise != nullptr, k0, depth, t.panel0 + g.panels / 2, t.panels, b,
                       c + g.task_panels * kPanel, s.c_stride, accumulate);
      }
      accumulate = true;
    }
    source_k0 += channels;
  }
  gemm_epilogue(g, t, c, s.c_stride);
}
