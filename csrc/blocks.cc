#include <algorithm>

#include "lower.h"

namespace mdrt {
namespace {

constexpr int64_t kMaxTaskPanels = 32;      // columns / 16 of a task: its C block stays in the second-level cache
constexpr int64_t kWeightBlockBytes = 72 << 10;   // of one tile's weights in one pass: stays near the core while all rows use it
constexpr int64_t kMinTasks = 16;           // enough to share among the cores of a board

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Without neighbours, pixels are one long row; without per-image data, so are images.
void flatten(GemmArgs* g, bool per_image) {
  int64_t row = g->in_h * g->in_w;
  if (!per_image) {
    row *= g->batch;
    g->batch = 1;
  }
  g->in_h = g->view_h = g->out_h = 1;
  g->in_w = g->view_w = g->out_w = row;
}

void choose_pixels(GemmArgs* g, const TileInfo& tile, bool per_image) {
  g->plain_product = is_plain_product(*g);
  if (g->plain_product) flatten(g, per_image);
  g->block_w = std::min(g->out_w, g->plain_product ? tile.block_pixels : int64_t{16});
  g->block_h = std::min(g->out_h, tile.block_pixels / g->block_w);
  g->blocks_x = divide_up(g->out_w, g->block_w);
  g->blocks_y = divide_up(g->out_h, g->block_h);
}

// Tasks of at most `most` panels, of fewer where there would be too few tasks, but of `least` tiles or more.
void choose_panels(GemmArgs* g, int64_t tile_panels, int64_t most, int64_t least) {
  const int64_t panels = g->gated ? g->panels / 2 : g->panels, blocks = g->batch * g->blocks_y * g->blocks_x;
  int64_t task_panels = most;
  while (blocks * divide_up(panels, task_panels) < kMinTasks && task_panels > least * tile_panels) task_panels = divide_up(task_panels, 2);
  // Even shares: 20 panels in tasks of 16 would be 16 and 4.
  const int64_t shares = divide_up(panels, task_panels);
  g->task_panels = divide_up(divide_up(panels, shares), tile_panels) * tile_panels;
  g->panel_blocks = divide_up(panels, g->task_panels);
}

}  // namespace

bool is_plain_product(const GemmArgs& g) {
  return g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0 &&
         !g.depthwise && g.view_h == g.in_h && g.view_w == g.in_w && g.out_h == g.in_h && g.out_w == g.in_w;
}

void choose_blocks(GemmArgs* g, const TileInfo& tile, bool per_image) {
  choose_pixels(g, tile, per_image);
  const int64_t taps = g->depthwise ? 1 : g->kernel_h * g->kernel_w;
  const int64_t fitting = kWeightBlockBytes / (taps * tile.columns * static_cast<int64_t>(sizeof(float)));
  g->k_block = std::clamp(fitting / kPanel * kPanel, kPanel, g->depthwise ? int64_t{64} : int64_t{256});

  choose_panels(g, tile.columns / kPanel, g->gated ? kMaxTaskPanels / 2 : kMaxTaskPanels, 4);
}

void choose_int8_blocks(GemmArgs* g, const TileInfo& tile, bool per_image) {
  choose_pixels(g, tile, per_image);
  // Sums never wait in memory: a task may take all columns.
  choose_panels(g, tile.int8_columns / kPanel, g->gated ? g->panels / 2 : g->panels, 2);
}

}  // namespace mdrt
