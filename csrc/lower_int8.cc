// Lowering of layers that multiply integers: their input becomes bytes in a step of its own, unless its producer writes bytes already.
#include <algorithm>

#include "base/checked.h"
#include "lower.h"
#include "quantised.h"

namespace mdrt {
namespace {

constexpr int64_t kTaskElements = 32768;    // of a task that quantises
constexpr int64_t kDepthwisePixels = 64;    // of a task with a depthwise convolution: small maps give work to every core
constexpr int64_t kMaxStrips = 256;         // of a layer: a step costs memory too
constexpr int64_t kBlockWidth = 16;         // pixels of an image row in a task

// Bytes between pixels: whole cache lines. An odd number of them spreads a tile's rows over the sets of the first-level cache, and
// costs little memory where pixels are long.
int64_t pixel_bytes(int64_t channels, const TileInfo& tile, bool widened) {
  const int64_t bytes = ValuePlace::round_up(channels, 64);
  if (widened) return bytes * tile.int8_bytes + tile.int8_tail;
  return bytes % 128 == 0 && bytes >= 512 ? bytes + 64 : bytes;
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

// Of a plain product: each pixel is a row, of all images where nothing tells them apart.
void pixels_as_rows(GemmArgs* layer, bool per_image) {
  int64_t pixels = layer->in_h * layer->in_w;
  if (!per_image) {
    pixels *= layer->batch;
    layer->batch = 1;
  }
  layer->in_h = layer->view_h = layer->out_h = pixels;
  layer->in_w = layer->view_w = layer->out_w = 1;
}

int64_t all_rows(const GemmArgs& layer) { return layer.batch * layer.out_h; }

// Pixels of the int8 copy, of one strip or all.
int64_t copied_pixels(const GemmArgs& layer, const Strip& strip) {
  return checked_mul(strip.images, layer.depthwise ? checked_mul(strip.out_h, layer.out_w) : checked_mul(strip.in_h, layer.in_w));
}

int64_t most_pixels(const GemmArgs& layer, const std::vector<Strip>& strips) {
  int64_t most = 0;
  for (const Strip& strip : strips) most = std::max(most, copied_pixels(layer, strip));
  return most;
}

// Even shares, each of whole blocks of a task.
std::vector<Strip> choose_strips(const GemmArgs& layer, int64_t stride, const TileInfo& tile, const StripRule& rule) {
  const Strip all = whole_layer(layer);
  const int64_t bytes = checked_mul(copied_pixels(layer, all), stride);
  if (bytes <= rule.whole_bytes || layer.view_h % layer.in_h != 0) return {all};
  const int64_t block = std::max<int64_t>(1, tile.block_pixels / std::min<int64_t>(layer.out_w, kBlockWidth));
  const int64_t fitting = std::max(rule.strip_bytes / std::max<int64_t>(1, bytes / all_rows(layer)), block);
  const int64_t shares = std::min((layer.out_h + fitting - 1) / fitting, kMaxStrips / layer.batch);
  if (shares < 1) return {all};
  const int64_t rows = ValuePlace::round_up((layer.out_h + shares - 1) / shares, block);
  if (layer.batch == 1 && rows >= layer.out_h) return {all};
  return cut_into_strips(layer, rows);
}

}  // namespace

// Whether every reader of a value is a plain product that takes it as bytes with a scale per pixel, so that its producer may write
// just those.
bool Lowering::is_read_as_bytes(int32_t value) const {
  if (!request_.fuse || wanted_[static_cast<size_t>(value)]) return false;
  bool read = false;
  for (const FusedNode& node : fused_) {
    if (!node.alive) continue;
    if (node.residual == value || node.image_bias == value) return false;
    if (std::find(node.inputs.begin(), node.inputs.end(), value) == node.inputs.end()) continue;
    if (!multiplies_integers(plain(node.node)) || node.inputs.size() != 1 || node.norm >= 0 || node.depthwise >= 0) return false;
    if (find_weight(plain(node.node), kInputScale)) return false;
    GemmArgs layer = {};
    set_geometry(node, &layer);
    if (!is_plain_product(layer)) return false;
    read = true;
  }
  return read;
}

Lowering::Quantized Lowering::add_quantized(int64_t batch, int64_t height, int64_t width, int64_t channels, bool scale_per_pixel,
                                            bool widened) {
  Quantized q;
  q.place.dtype = DType::int8;
  q.place.batch = batch;
  q.place.height = height;
  q.place.width = width;
  q.place.channels = channels;
  q.widened = widened;
  q.place.stride = pixel_bytes(channels, kernels_.tile, widened);
  q.place.buffer = add_buffer(checked_mul(all_pixels(q.place), q.place.stride));
  if (scale_per_pixel) q.scales = add_buffer(checked_mul(all_pixels(q.place), 4));
  return q;
}

void Lowering::use(ActivationView* view, const Quantized& q) {
  view->dtype = DType::int8;
  view->channels = q.place.channels;
  view->stride = q.place.stride;
  view->widened = q.widened;
  use(&view->data, q.place.buffer);
}

void Lowering::quantize(const FusedNode& node, const GemmArgs& layer, const Strip& strip, const Quantized& q) {
  auto& step = add_step<QuantizeArgs>(kernels_.quantize, "quantize", node.output);
  QuantizeArgs& a = step.data;
  GemmArgs& g = a.layer;
  g = layer;
  restrict_to(strip, &g);
  set_input(node, strip, &g);
  if (g.depthwise) {
    g.panels = 1;       // one task makes all channels of its pixels
    TileInfo tile = kernels_.tile;
    tile.block_pixels = kDepthwisePixels;
    choose_blocks(&g, tile, true);
    step.macs = macs(node.depthwise) / all_rows(layer) * (strip.images * strip.out_h);
    step.tasks = g.batch * g.blocks_y * g.blocks_x;
  } else {
    a.pixels = g.batch * g.in_h * g.in_w;
    a.block_pixels = std::clamp<int64_t>(kTaskElements / g.k_channels, 1, 512);
    step.tasks = checked_add(a.pixels, a.block_pixels - 1) / a.block_pixels;
  }
  use(&a.output, q);
  a.not_finite = &plan_.not_finite;
  if (q.scales >= 0) {
    use(&a.pixel_scale, q.scales);
  } else {
    a.input_scale = weight<float>(plain(node.node), kInputScale);
    a.input_zero_point = weight<int32_t>(plain(node.node), kInputZeroPoint);
  }
  step.scratch_bytes = kernels_.quantize_scratch_bytes(&a);
}

Lowering::GemmKernel Lowering::choose_gemm_int8(const FusedNode& node, const GemmArgs& layer, const Quantized& q) const {
  GemmArgs g = layer;
  g.panels = find_weight(plain(node.node), kWeight)->shape[0];
  g.gated = node.gated;
  if (q.scales < 0 && can_use_winograd_int8(g) && wants_winograd(winograd_int8_pays(g, kernels_.tile))) {
    return {kernels_.winograd_int8, "winograd_int8", kernels_.winograd_int8_scratch_bytes};
  }
  return {kernels_.gemm_int8, "gemm_int8", kernels_.gemm_int8_scratch_bytes};
}

void Lowering::multiply_int8(const FusedNode& node, const GemmArgs& layer, const Strip& strip, const Quantized& q) {
  const Node& op = plain(node.node);
  const GemmKernel kernel = choose_gemm_int8(node, layer, q);
  auto& step = add_step<GemmArgs>(kernel.run, kernel.name, node.output);
  GemmArgs& g = step.data;
  g = layer;
  restrict_to(strip, &g);
  if (g.depthwise) drop_depthwise(&g);
  use(&g.sources[0], q);
  g.num_sources = 1;
  g.k_channels = q.place.channels;
  step.macs = macs(node.node) / all_rows(layer) * (strip.images * strip.out_h);
  set_product(node, strip, &g);
  g.weight_sum = weight<int32_t>(op, kWeightSum);
  if (q.scales >= 0) {
    use(&g.pixel_scale, q.scales);
  } else {
    g.input_scale = weight<float>(op, kInputScale);
    g.input_zero_point = weight<int32_t>(op, kInputZeroPoint);
  }
  if (kernel.run == kernels_.winograd_int8) {
    choose_winograd_int8_blocks(&g);
  } else {
    choose_int8_blocks(&g, kernels_.tile, node.image_bias >= 0 || makes_sums(node));
  }
  g.tasks_ahead = request_.threads;
  use(&g.output, node.output, strip.out_pixel);
  if (makes_sums(node)) make_sums(node, &g);
  step.tasks = g.batch * g.blocks_y * g.blocks_x * g.panel_blocks;
  step.scratch_bytes = kernel.scratch_bytes(&g);
}

// Values that the output of an int8 layer may lie on. A residual is read where it is written; in strips, the rows of the input
// that later strips read must stay.
std::vector<int32_t> Lowering::overwritten(const FusedNode& node, bool plain_product, bool in_strips) const {
  const bool is_input = std::find(node.inputs.begin(), node.inputs.end(), node.residual) != node.inputs.end();
  if (node.residual < 0) return in_strips && plain_product ? node.inputs : std::vector<int32_t>{};
  if (in_strips && is_input && !plain_product) return {};
  return {node.residual};
}

// A whole copy stands beside the input first, beside the output then; a strip beside both. What is alive before and after the
// layer counts for neither.
bool Lowering::strips_save_memory(const FusedNode& node, bool plain_product, int64_t copy_bytes, int64_t strip_bytes) const {
  const auto new_output = [&](bool in_strips) {
    const ValuePlace p = output_place(node, overwritten(node, plain_product, in_strips));
    return p.buffer < 0 ? place_bytes(p) : 0;
  };
  int64_t input = 0;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const size_t value = static_cast<size_t>(node.inputs[i]);
    const bool is_seen = std::find(node.inputs.begin(), node.inputs.begin() + static_cast<ptrdiff_t>(i), node.inputs[i]) !=
                         node.inputs.begin() + static_cast<ptrdiff_t>(i);
    if (!is_seen && last_reader_[value] == current_ && !wanted_[value]) input = checked_add(input, place_bytes(place(node.inputs[i])));
  }
  const int64_t whole = checked_add(copy_bytes, std::max(input, new_output(false)));
  return checked_add(checked_add(input, new_output(true)), strip_bytes) < whole;
}

void Lowering::lower_gemm_int8(const FusedNode& node) {
  GemmArgs layer = {};
  set_geometry(node, &layer);
  for (int32_t value : node.inputs) layer.k_channels += place(value).padded();
  const bool plain_product = is_plain_product(layer);
  if (plain_product) pixels_as_rows(&layer, node.norm >= 0 || node.image_bias >= 0 || makes_sums(node));
  const bool scale_per_pixel = find_weight(plain(node.node), kInputScale) == nullptr;
  const bool shared = scale_per_pixel && node.inputs.size() == 1 && node.norm < 0 && node.depthwise < 0;
  const bool widened = plain_product && reads_widened_pixels();
  const auto found = shared ? quantized_.find({node.inputs[0], widened}) : quantized_.end();
  if (found != quantized_.end()) {
    place_output(node, overwritten(node, plain_product, false));
    return multiply_int8(node, layer, whole_layer(layer), found->second);
  }
  const int64_t stride = pixel_bytes(layer.k_channels, kernels_.tile, widened),
      copy_bytes = checked_mul(copied_pixels(layer, whole_layer(layer)), stride);
  std::vector<Strip> strips = choose_strips(layer, stride, kernels_.tile, strip_rule_);
  if (!strips_save_memory(node, plain_product, copy_bytes, most_pixels(layer, strips) * stride)) strips = {whole_layer(layer)};
  const Quantized q = add_quantized(1, 1, most_pixels(layer, strips), layer.k_channels, scale_per_pixel, widened);
  for (const Strip& strip : strips) {
    quantize(node, layer, strip, q);
    if (strip.out_pixel == 0) place_output(node, overwritten(node, plain_product, strips.size() > 1));
    multiply_int8(node, layer, strip, q);
  }
  for (size_t i = plan_.steps.size() - 2 * strips.size(); i < plan_.steps.size(); ++i) {
    plan_.steps[i]->strips = static_cast<int>(strips.size());
  }
  if (shared && strips.size() == 1) quantized_[{node.inputs[0], widened}] = q;
}

}  // namespace mdrt
