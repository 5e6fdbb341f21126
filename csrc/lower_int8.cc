// Lowering of int8 layers: their input becomes bytes in a step of its own, unless its producer writes bytes already.
#include <algorithm>

#include "base/checked.h"
#include "lower.h"

namespace mdrt {
namespace {

constexpr int64_t kTaskElements = 32768;    // of a task that quantises
constexpr int64_t kDepthwisePixels = 64;    // of a task with a depthwise convolution: small maps give work to every core

// Bytes between pixels: whole cache lines, an odd number of them where pixels would otherwise share sets of the first-level cache.
int64_t pixel_bytes(int64_t channels) {
  const int64_t bytes = ValuePlace::round_up(channels, 64);
  return bytes % 1024 == 0 ? bytes + 64 : bytes;
}

int64_t all_pixels(const ValuePlace& p) { return checked_mul(p.batch, checked_mul(p.height, p.width)); }

// What holds for a layer whose depthwise half has been done while its input was quantised.
void drop_depthwise(GemmArgs* g) {
  g->depthwise = g->depthwise_bias = nullptr;
  g->in_h = g->view_h = g->out_h;
  g->in_w = g->view_w = g->out_w;
  g->kernel_h = g->kernel_w = g->stride_h = g->stride_w = 1;
  g->pad_top = g->pad_left = 0;
}

}  // namespace

bool Lowering::is_int8(const FusedNode& node) const {
  if (node.op != OpType::conv2d && node.op != OpType::linear) return false;
  return find_weight(plain(node.node), kWeight)->dtype == DType::int8;
}

// Whether every reader of a value takes it as bytes with a scale per pixel, so that its producer may write just those.
bool Lowering::is_read_as_bytes(int32_t value) const {
  if (!request_.fuse || wanted_[static_cast<size_t>(value)]) return false;
  bool read = false;
  for (const FusedNode& node : fused_) {
    if (!node.alive) continue;
    if (node.residual == value || node.image_bias == value) return false;
    if (std::find(node.inputs.begin(), node.inputs.end(), value) == node.inputs.end()) continue;
    if (!is_int8(node) || node.inputs.size() != 1 || node.norm >= 0 || node.depthwise >= 0) return false;
    if (find_weight(plain(node.node), kInputScale)) return false;
    read = true;
  }
  return read;
}

Lowering::Quantized Lowering::add_quantized(int64_t batch, int64_t height, int64_t width, int64_t channels, bool scale_per_pixel) {
  Quantized q;
  q.place.dtype = DType::int8;
  q.place.batch = batch;
  q.place.height = height;
  q.place.width = width;
  q.place.channels = channels;
  q.place.stride = pixel_bytes(channels);
  q.place.buffer = add_buffer(checked_mul(all_pixels(q.place), q.place.stride));
  if (scale_per_pixel) q.scales = add_buffer(checked_mul(all_pixels(q.place), 4));
  return q;
}

void Lowering::use(ActivationView* view, const Quantized& q) {
  view->dtype = DType::int8;
  view->channels = q.place.channels;
  view->stride = q.place.stride;
  use(&view->data, q.place.buffer);
}

Lowering::Quantized Lowering::quantize(const FusedNode& node) {
  const Node& op = plain(node.node);
  const bool scale_per_pixel = find_weight(op, kInputScale) == nullptr;
  const bool shared = scale_per_pixel && node.inputs.size() == 1 && node.norm < 0 && node.depthwise < 0;
  if (shared) {
    const auto found = quantized_.find(node.inputs[0]);
    if (found != quantized_.end()) return found->second;
  }
  auto& step = add_step<QuantizeArgs>(kernels_.quantize, "quantize", node.output);
  QuantizeArgs& a = step.data;
  GemmArgs& g = a.layer;
  set_input(node, &g);
  Quantized q;
  if (g.depthwise) {
    g.panels = 1;       // one task makes all channels of its pixels
    TileInfo tile = kernels_.tile;
    tile.block_pixels = kDepthwisePixels;
    choose_blocks(&g, tile, true);
    q = add_quantized(g.batch, g.out_h, g.out_w, g.k_channels, scale_per_pixel);
    step.macs = macs(node.depthwise);
    step.tasks = g.batch * g.blocks_y * g.blocks_x;
  } else {
    q = add_quantized(g.batch, g.in_h, g.in_w, g.k_channels, scale_per_pixel);
    a.pixels = all_pixels(q.place);
    a.block_pixels = std::clamp<int64_t>(kTaskElements / g.k_channels, 1, 512);
    step.tasks = checked_add(a.pixels, a.block_pixels - 1) / a.block_pixels;
  }
  use(&a.output, q);
  if (scale_per_pixel) {
    use(&a.pixel_scale, q.scales);
  } else {
    a.input_scale = weight<float>(op, kInputScale);
    a.input_zero_point = weight<int32_t>(op, kInputZeroPoint);
  }
  step.scratch_bytes = kernels_.quantize_scratch_bytes(&a);
  if (shared) quantized_[node.inputs[0]] = q;
  return q;
}

void Lowering::lower_gemm_int8(const FusedNode& node) {
  const Node& op = plain(node.node);
  const Quantized q = quantize(node);
  auto& step = add_step<GemmArgs>(kernels_.gemm_int8, "gemm_int8", node.output);
  GemmArgs& g = step.data;
  set_geometry(node, &g);
  if (g.depthwise) drop_depthwise(&g);
  use(&g.sources[0], q);
  g.num_sources = 1;
  g.k_channels = q.place.channels;
  step.macs = macs(node.node);
  set_product(node, &g);
  g.weight_scale = weight<float>(op, kWeightScale);
  g.weight_sum = weight<int32_t>(op, kWeightSum);
  if (q.scales >= 0) {
    use(&g.pixel_scale, q.scales);
  } else {
    g.input_scale = weight<float>(op, kInputScale);
    g.input_zero_point = weight<int32_t>(op, kInputZeroPoint);
  }
  choose_int8_blocks(&g, kernels_.tile, node.image_bias >= 0);
  place_output(node, node.residual);      // a residual is read where it is written
  use(&g.output, node.output);
  step.tasks = g.batch * g.blocks_y * g.blocks_x * g.panel_blocks;
  step.scratch_bytes = kernels_.gemm_int8_scratch_bytes(&g);
}

}  // namespace mdrt
