#include <algorithm>

#include "lower.h"

namespace mdrt {
namespace {

constexpr int64_t kMaxTaskPanels = 32;      // columns / 16 of a task: its C block stays in the second-level cache
constexpr int64_t kMinTasks = 16;           // enough to share among the cores of a board
constexpr int64_t kWideBlockChannels = 64;  // of a pass
constexpr int64_t kWinogradInt8Channels = 1792;   // beyond, four times a sum might not fit into 32 bits
constexpr int64_t kWinogradInt8Pixels = 192;      // of a task: 48 tiles
constexpr int64_t kWinogradInt8Depth = 128;       // channels of a pass
constexpr int64_t kWinogradInt8Panels = 4;        // of a task: their sums at 16 points stay in the second-level cache
constexpr int64_t kWinogradPanels = 12;
constexpr int64_t kWinogradTasks = 8;       // every task transforms pixels and weights of its own

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

// Blocks of at most `pixels` for kernels that prepare weights once a task; each side is whole tiles of `side` pixels.
void choose_wide_block(GemmArgs* g, int64_t pixels, int64_t side) {
  constexpr int64_t kBlockWidth = 32;
  g->plain_product = false;
  g->block_w = std::min(divide_up(g->out_w, side) * side, kBlockWidth);
  g->block_h = std::min(divide_up(g->out_h, side) * side, pixels / g->block_w / side * side);
  g->blocks_x = divide_up(g->out_w, g->block_w);
  g->blocks_y = divide_up(g->out_h, g->block_h);
  g->k_block = std::min(g->k_channels, kWideBlockChannels);
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
  const int64_t fitting = tile.weight_block_bytes / (taps * tile.columns * static_cast<int64_t>(sizeof(float)));
  g->k_block = std::clamp(fitting / kPanel * kPanel, kPanel, g->depthwise ? int64_t{64} : int64_t{256});

  // Register tiles share the panels of a task evenly: their number is no multiple of anything.
  choose_panels(g, 1, g->gated ? kMaxTaskPanels / 2 : kMaxTaskPanels, tile.columns > kPanel ? 8 : 4);
}

bool narrow_pays(const GemmArgs& g, const TileInfo& tile) {
  return g.columns <= tile.narrow_columns && g.kernel_h * g.kernel_w > 1 && !g.depthwise && !g.gated;
}

void choose_narrow_blocks(GemmArgs* g, const TileInfo& tile) {
  choose_wide_block(g, 2 * tile.block_pixels, 1);
  g->task_panels = g->panel_blocks = 1;
}

bool can_use_winograd(const GemmArgs& g) {
  return g.kernel_h == 3 && g.kernel_w == 3 && g.stride_h == 1 && g.stride_w == 1 && !g.depthwise;
}

bool winograd_pays(const GemmArgs& g) {
  // Transforming pixels is shared by the output's channels, transforming weights by the pixels.
  return can_use_winograd(g) && g.k_channels >= 64 && g.panels >= 4 && g.out_h >= 16 && g.out_w >= 16;
}

void choose_winograd_blocks(GemmArgs* g, const TileInfo& tile) {
  choose_wide_block(g, 2 * tile.block_pixels, 4);
  const int64_t blocks = g->batch * g->blocks_y * g->blocks_x;
  g->task_panels = std::clamp(divide_up(g->panels * blocks, kWinogradTasks), int64_t{3}, kWinogradPanels);
  g->task_panels = divide_up(g->panels, divide_up(g->panels, g->task_panels));      // even shares
  g->panel_blocks = divide_up(g->panels, g->task_panels);
}

void choose_int8_blocks(GemmArgs* g, const TileInfo& tile, bool per_image) {
  choose_pixels(g, tile, per_image);
  // Sums never wait in memory: a task may take all columns.
  constexpr int64_t kPanelsOfWidened = 2;
  choose_panels(g, tile.int8_panel_step, g->gated ? g->panels / 2 : g->panels,
                g->sources[0].widened ? kPanelsOfWidened : tile.int8_task_panels);
}

bool can_use_winograd_int8(const GemmArgs& g) {
  return can_use_winograd(g) && !g.gated && g.k_channels <= kWinogradInt8Channels;
}

bool winograd_int8_pays(const GemmArgs& g, const TileInfo& tile) {
  return tile.int8_winograd_pays && can_use_winograd_int8(g) && g.k_channels >= 32 && g.panels >= 2 && g.out_h >= 8 && g.out_w >= 8;
}

void choose_winograd_int8_blocks(GemmArgs* g) {
  choose_wide_block(g, kWinogradInt8Pixels, 2);
  g->k_block = std::min(g->k_channels, kWinogradInt8Depth);
  choose_panels(g, 1, kWinogradInt8Panels, 2);
}

}  // namespace mdrt
