#include "lower.h"

#include <algorithm>

#include "base/checked.h"

namespace mdrt {
namespace {

constexpr int64_t kBlockPixels = 64;     // pixels per task of the kernels that walk over pixels
constexpr int64_t kBlockQueries = 256;   // keys are brought into panels once for so many

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t element_bytes(DType dtype) { return dtype == DType::fp16 ? 2 : 4; }

ValuePlace make_place(const Shape& shape, DType dtype) {
  ValuePlace p;
  p.dtype = dtype;
  p.batch = shape[0];
  p.channels = shape.size() > 1 ? shape.back() : 1;
  p.height = shape.size() == 4 ? shape[1] : 1;
  p.width = shape.size() == 4 ? shape[2] : shape.size() == 3 ? shape[1] : 1;
  p.stride = p.padded();
  return p;
}

}  // namespace

int64_t place_bytes(const ValuePlace& p) {
  const int64_t pixels = checked_mul(p.batch, checked_mul(p.height, p.width));
  return checked_mul(checked_mul(pixels, p.stride), element_bytes(p.dtype));
}

Lowering::Lowering(const PlanRequest& request, const StripRule& strip_rule, Plan& plan)
    : request_(request), graph_(request.graph), strip_rule_(strip_rule), plan_(plan), kernels_(*request.isa.kernels) {
  wanted_.assign(static_cast<size_t>(graph_.value_count()), false);
  for (int32_t value : request.wanted) wanted_[static_cast<size_t>(value)] = true;
  fused_ = fuse(graph_, plan_.shapes, wanted_, request.fuse);
  last_reader_.assign(static_cast<size_t>(graph_.value_count()), -1);
  plan_.weight_readers.assign(graph_.weights.size(), 0);
  norm_buffers_.assign(fused_.size(), -1);
  for (const Weight& weight : graph_.weights) half_ = half_ || weight.dtype == DType::fp16 || weight.dtype == DType::int8;
}

int32_t Lowering::add_buffer(int64_t size_bytes) {
  Buffer buffer;
  buffer.size_bytes = round_up(size_bytes, 64);
  buffer.first_step = buffer.last_step = static_cast<int>(plan_.steps.size());
  plan_.buffers.push_back(buffer);
  return static_cast<int32_t>(plan_.buffers.size()) - 1;
}

void Lowering::use(void* location, int32_t buffer, int64_t offset) {
  Buffer& b = plan_.buffers[static_cast<size_t>(buffer)];
  const int step = static_cast<int>(plan_.steps.size()) - 1;
  b.first_step = std::min(b.first_step, step);
  b.last_step = std::max(b.last_step, step);
  pointers_.push_back({static_cast<void**>(location), buffer, offset});
}

void Lowering::use(ActivationView* view, int32_t value, int64_t first_pixel) {
  const ValuePlace& p = place(value);
  view->dtype = p.dtype;
  view->channels = p.padded();
  view->stride = p.stride;
  use(&view->data, p.buffer, first_pixel * p.stride * element_bytes(p.dtype));
}

void Lowering::use_sources(ActivationView* sources, int* num_sources, int64_t* k_channels, const std::vector<int32_t>& values,
                           int64_t first_pixel) {
  *num_sources = static_cast<int>(values.size());
  *k_channels = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    use(&sources[i], values[i], first_pixel);
    *k_channels += sources[i].channels;
  }
}

const Weight* Lowering::find_weight(const Node& node, size_t input) const {
  if (input >= node.inputs.size()) return nullptr;
  return &graph_.weights[static_cast<size_t>(node.inputs[input] - graph_.weight_base())];
}

int64_t Lowering::macs(int32_t node) const {
  return node_macs(graph_, plain(node), plan_.shapes, plan_.shapes[static_cast<size_t>(graph_.node_base() + node)]);
}

void Lowering::lower() {
  for (size_t i = 0; i < fused_.size(); ++i) {
    const FusedNode& node = fused_[i];
    if (!node.alive) continue;
    for (int32_t value : node.inputs) last_reader_[static_cast<size_t>(value)] = static_cast<int>(i);
    for (int32_t value : {node.image_bias, node.residual}) {
      if (value >= 0) last_reader_[static_cast<size_t>(value)] = static_cast<int>(i);
    }
  }
  place_inputs();
  for (size_t i = 0; i < fused_.size(); ++i) {
    if (!fused_[i].alive) continue;
    current_ = static_cast<int>(i);
    lower_node(fused_[i]);
    note_weights(fused_[i]);
  }
  for (size_t value = 0; value < wanted_.size(); ++value) {
    if (wanted_[value]) {
      plan_.buffers[static_cast<size_t>(plan_.places[value].buffer)].last_step = static_cast<int>(plan_.steps.size());
    }
  }
  for (const auto& step : plan_.steps) {
    plan_.scratch_bytes = std::max(plan_.scratch_bytes, round_up(step->scratch_bytes, 64));
    plan_.macs += step->macs;
  }
}

void Lowering::note_weights(const FusedNode& node) {
  for (int32_t part : {node.node, node.depthwise}) {
    if (part < 0) continue;
    for (int32_t input : plain(part).inputs) {
      if (!graph_.is_weight(input)) continue;
      plan_.weight_readers[static_cast<size_t>(input - graph_.weight_base())] = static_cast<int>(plan_.steps.size()) - 1;
    }
  }
}

void Lowering::bind() {
  for (const Pointer& pointer : pointers_) *pointer.location = plan_.at(pointer.buffer) + pointer.offset;
}

void Lowering::place_inputs() {
  for (size_t i = 0; i < graph_.inputs.size(); ++i) {
    ValuePlace p = make_place(plan_.shapes[i], graph_.inputs[i].dtype);
    if (p.dtype == DType::int32 || plan_.shapes[i].size() == 1) {
      p.stride = p.channels;    // numbers, not channels: dense
    }
    p.buffer = add_buffer(place_bytes(p));
    plan_.places[i] = p;
  }
}

// Whether the node being lowered may write its output over `value`: nobody reads it later, and it is no smaller.
bool Lowering::can_overwrite(const FusedNode& node, int32_t value, const ValuePlace& output) const {
  if (!request_.fuse || value < graph_.node_base() || last_reader_[static_cast<size_t>(value)] != current_) return false;
  if (wanted_[static_cast<size_t>(value)] || wanted_[static_cast<size_t>(node.output)]) return false;
  return place(value).dtype == output.dtype && place(value).stride >= output.stride;
}

ValuePlace Lowering::output_place(const FusedNode& node, const std::vector<int32_t>& overwrite) const {
  const Shape& shape = plan_.shapes[static_cast<size_t>(node.output)];
  const bool half = half_ && shape.size() >= 3 && !wanted_[static_cast<size_t>(node.output)];
  ValuePlace p = make_place(shape, half ? DType::fp16 : DType::fp32);
  const auto over = std::find_if(overwrite.begin(), overwrite.end(), [&](int32_t value) { return can_overwrite(node, value, p); });
  if (over != overwrite.end()) {
    p.stride = place(*over).stride;
    p.buffer = place(*over).buffer;
  }
  return p;
}

void Lowering::place_output(const FusedNode& node, const std::vector<int32_t>& overwrite) {
  ValuePlace p = output_place(node, overwrite);
  if (p.buffer < 0) p.buffer = add_buffer(place_bytes(p));
  plan_.places[static_cast<size_t>(node.output)] = p;
}

void Lowering::lower_node(const FusedNode& node) {
  if (node.op == OpType::conv2d || node.op == OpType::linear) return is_int8(node) ? lower_gemm_int8(node) : lower_gemm(node);
  if (node.op == OpType::layer_norm) return lower_layer_norm(node);
  if (!node.stats_only) place_output(node, {});
  switch (node.op) {
    case OpType::conv2d:
    case OpType::linear:
    case OpType::layer_norm: return;
    case OpType::depthwise_conv2d: return lower_depthwise(node);
    case OpType::attention: return lower_attention(node);
    case OpType::group_norm: return lower_group_norm(node);
    case OpType::silu:
    case OpType::gelu:
    case OpType::quick_gelu:
    case OpType::gated_unit:
    case OpType::add: return lower_pointwise(node);
    case OpType::concat: return lower_concat(node);
    case OpType::upsample:
    case OpType::resize_like: return lower_resize(node);
    case OpType::embedding: return lower_embedding(node);
    case OpType::timestep_embedding: return lower_timestep_embedding(node);
  }
}

void Lowering::set_input(const FusedNode& node, const Strip& strip, GemmArgs* g) {
  use_sources(g->sources, &g->num_sources, &g->k_channels, node.inputs, strip.in_pixel);
  if (node.norm >= 0) {
    use(&g->norm, norm_buffers_[static_cast<size_t>(node.norm)], strip.image * 2 * g->k_channels * 4);
    g->input_activation = node.input_activation;
  }
}

void Lowering::set_product(const FusedNode& node, const Strip& strip, GemmArgs* g) {
  const Node& op = plain(node.node);
  const Weight& panels = *find_weight(op, 1);
  g->weight = panels.data;
  g->weight_dtype = panels.dtype;
  g->panels = panels.shape[0];
  g->columns = plan_.shapes[static_cast<size_t>(node.output)].back();
  g->bias = weight<float>(op, 2);
  g->activation = node.activation;
  g->gated = node.gated;
  if (node.image_bias >= 0) {
    g->image_bias_stride = place(node.image_bias).stride;
    use(&g->image_bias, place(node.image_bias).buffer, strip.image * g->image_bias_stride * 4);
  }
  if (node.residual >= 0) use(&g->residual, node.residual, strip.out_pixel);
}

Lowering::GemmKernel Lowering::choose_gemm(const FusedNode& node) const {
  GemmArgs g = {};
  set_geometry(node, &g);
  for (int32_t value : node.inputs) g.k_channels += place(value).padded();
  g.panels = find_weight(plain(node.node), kWeight)->shape[0];
  g.columns = plan_.shapes[static_cast<size_t>(node.output)].back();
  g.gated = node.gated;
  if (narrow_pays(g, kernels_.tile)) return {kernels_.narrow, "narrow", kernels_.narrow_scratch_bytes};
  const bool wanted = request_.winograd == Winograd::wherever_possible ||
                      (request_.winograd == Winograd::where_it_pays && winograd_pays(g));
  if (wanted && can_use_winograd(g)) return {kernels_.winograd, "winograd", kernels_.winograd_scratch_bytes};
  return {kernels_.gemm, "gemm", kernels_.gemm_scratch_bytes};
}

void Lowering::lower_gemm(const FusedNode& node) {
  const GemmKernel kernel = choose_gemm(node);
  auto& step = add_step<GemmArgs>(kernel.run, kernel.name, node.output);
  GemmArgs& g = step.data;
  set_geometry(node, &g);
  const Strip all = whole_layer(g);
  set_input(node, all, &g);
  step.macs = macs(node.node) + (node.depthwise >= 0 ? macs(node.depthwise) : 0);
  set_product(node, all, &g);
  if (kernel.run == kernels_.winograd) {
    choose_winograd_blocks(&g, kernels_.tile);
  } else if (kernel.run == kernels_.narrow) {
    choose_narrow_blocks(&g, kernels_.tile);
  } else {
    choose_blocks(&g, kernels_.tile, node.norm >= 0 || node.image_bias >= 0);
  }
  // A residual is read where it is written. So is the input of a plain product whose tasks hold whole pixels.
  const bool whole_pixels = g.plain_product && g.panel_blocks == 1 && g.num_sources == 1;
  std::vector<int32_t> overwrite;
  if (whole_pixels) overwrite = node.inputs;
  if (node.residual >= 0) {
    const bool is_input = std::find(node.inputs.begin(), node.inputs.end(), node.residual) != node.inputs.end();
    overwrite.clear();
    if (!is_input || whole_pixels) overwrite.push_back(node.residual);
  }
  place_output(node, overwrite);
  use(&g.output, node.output);
  step.tasks = g.batch * g.blocks_y * g.blocks_x * g.panel_blocks;
  step.scratch_bytes = kernel.scratch_bytes(&g);
}

void Lowering::set_geometry(const FusedNode& node, GemmArgs* g) const {
  const ValuePlace& in = place(node.inputs[0]);
  const ValuePlace out = make_place(plan_.shapes[static_cast<size_t>(node.output)], DType::fp32);
  g->batch = in.batch;
  g->in_h = g->view_h = in.height;
  g->in_w = g->view_w = in.width;
  g->out_h = out.height;
  g->out_w = out.width;
  g->kernel_h = g->kernel_w = g->stride_h = g->stride_w = 1;
  if (node.resize >= 0) {
    const Shape& view = plan_.shapes[static_cast<size_t>(graph_.node_base() + node.resize)];
    g->view_h = view[1];
    g->view_w = view[2];
  }
  if (node.op == OpType::linear) return;
  const Node& spatial = plain(node.depthwise >= 0 ? node.depthwise : node.node);
  g->kernel_h = attribute_int(spatial, "kernel_size", 0);
  g->kernel_w = attribute_int(spatial, "kernel_size", 1);
  g->stride_h = attribute_int(spatial, "stride", 0);
  g->stride_w = attribute_int(spatial, "stride", 1);
  g->pad_top = attribute_int(spatial, "pads", 0);
  g->pad_left = attribute_int(spatial, "pads", 1);
  if (node.depthwise >= 0) {
    g->depthwise = weight<float>(spatial, 1);
    g->depthwise_bias = weight<float>(spatial, 2);
  }
}

void Lowering::lower_depthwise(const FusedNode& node) {
  auto& step = add_step<DepthwiseArgs>(kernels_.depthwise, "depthwise", node.output);
  DepthwiseArgs& a = step.data;
  const Node& op = plain(node.node);
  const ValuePlace &in = place(node.inputs[0]), &out = place(node.output);
  use(&a.input, node.inputs[0]);
  use(&a.output, node.output);
  a.batch = in.batch;
  a.in_h = in.height;
  a.in_w = in.width;
  a.out_h = out.height;
  a.out_w = out.width;
  a.kernel_h = attribute_int(op, "kernel_size", 0);
  a.kernel_w = attribute_int(op, "kernel_size", 1);
  a.stride_h = attribute_int(op, "stride", 0);
  a.stride_w = attribute_int(op, "stride", 1);
  a.pad_top = attribute_int(op, "pads", 0);
  a.pad_left = attribute_int(op, "pads", 1);
  a.weight = weight<float>(op, 1);
  a.bias = weight<float>(op, 2);
  step.tasks = out.batch * out.height;
  step.macs = macs(node.node);
}

void Lowering::lower_group_norm(const FusedNode& node) {
  const Node& op = plain(node.node);
  const ValuePlace& in = place(node.inputs[0]);
  auto& sums = add_step<GroupNormStatsArgs>(kernels_.group_norm_sums, "group_norm_sums", node.output);
  GroupNormStatsArgs& a = sums.data;
  use_sources(a.sources, &a.num_sources, &a.k_channels, node.inputs);
  a.batch = in.batch;
  a.pixels = in.pixels();
  a.block_pixels = 4 * kBlockPixels;
  a.blocks = divide_up(a.pixels, a.block_pixels);
  a.channels = attribute_int(op, "num_channels");
  a.groups = attribute_int(op, "num_groups");
  a.eps = attribute_real(op, "eps");
  a.weight = weight<float>(op, 1);
  a.bias = weight<float>(op, 2);
  const int64_t floats = checked_mul(2 * a.batch, a.k_channels);
  const int32_t sums_buffer = add_buffer(checked_mul(floats, a.blocks * 4));
  const int32_t norm_buffer = add_buffer(checked_mul(floats, 4));
  norm_buffers_[static_cast<size_t>(current_)] = norm_buffer;
  use(&a.sums, sums_buffer);
  sums.tasks = a.batch * a.blocks;

  auto& finish = add_step<GroupNormStatsArgs>(kernels_.group_norm_finish, "group_norm_finish", node.output);
  finish.data = a;
  use_sources(finish.data.sources, &finish.data.num_sources, &finish.data.k_channels, node.inputs);
  use(&finish.data.sums, sums_buffer);
  use(&finish.data.norm, norm_buffer);
  finish.tasks = a.batch * a.groups;
  if (node.stats_only) return;

  auto& apply = add_step<NormApplyArgs>(kernels_.norm_apply, "norm_apply", node.output);
  NormApplyArgs& n = apply.data;
  int64_t k_channels;
  use_sources(n.sources, &n.num_sources, &k_channels, node.inputs);
  use(&n.output, node.output);
  use(&n.norm, norm_buffer);
  n.batch = a.batch;
  n.pixels = a.pixels;
  n.block_pixels = kBlockPixels;
  n.blocks = divide_up(n.pixels, n.block_pixels);
  n.activation = node.activation;
  apply.tasks = n.batch * n.blocks;
}

void Lowering::lower_layer_norm(const FusedNode& node) {
  auto& step = add_step<LayerNormArgs>(kernels_.layer_norm, "layer_norm", node.output);
  LayerNormArgs& a = step.data;
  const Node& op = plain(node.node);
  use(&a.input, node.inputs[0]);
  if (is_read_as_bytes(node.output)) {
    const ValuePlace p = make_place(plan_.shapes[static_cast<size_t>(node.output)], DType::int8);
    const Quantized q = add_quantized(p.batch, p.height, p.width, p.padded(), true);
    quantized_[node.output] = q;
    plan_.places[static_cast<size_t>(node.output)] = q.place;
    use(&a.output, q);
    use(&a.pixel_scale, q.scales);
    a.not_finite = &plan_.not_finite;
  } else {
    place_output(node, {});
    use(&a.output, node.output);
  }
  a.pixels = place(node.output).batch * place(node.output).pixels();
  a.block_pixels = kBlockPixels / 4;
  a.size = attribute_int(op, "normalized_shape");
  a.eps = static_cast<float>(attribute_real(op, "eps"));
  a.weight = weight<float>(op, 1);
  a.bias = weight<float>(op, 2);
  step.tasks = divide_up(a.pixels, a.block_pixels);
  step.scratch_bytes = kernels_.layer_norm_scratch_bytes(&a);
}

void Lowering::lower_attention(const FusedNode& node) {
  auto& step = add_step<AttentionArgs>(kernels_.attention, "attention", node.output);
  AttentionArgs& a = step.data;
  const Node& op = plain(node.node);
  use(&a.q, node.inputs[0]);
  use(&a.k, node.inputs[1]);
  use(&a.v, node.inputs[2]);
  use(&a.output, node.output);
  a.batch = place(node.output).batch;
  a.queries = place(node.output).pixels();
  a.keys = place(node.inputs[1]).pixels();
  a.heads = attribute_int(op, "num_heads");
  a.head_dim = place(node.output).channels / a.heads;
  a.fn = attribute_int(op, "attention_fn") == 0 ? AttentionFn::softmax : AttentionFn::relu;
  a.is_causal = attribute_int(op, "is_causal") == 1;
  a.block_queries = std::min(a.queries, kBlockQueries);
  a.query_blocks = divide_up(a.queries, a.block_queries);
  step.tasks = a.batch * a.heads * a.query_blocks;
  step.scratch_bytes = kernels_.attention_scratch_bytes(&a);
  step.macs = macs(node.node);
}

void Lowering::lower_pointwise(const FusedNode& node) {
  auto& step = add_step<PointwiseArgs>(kernels_.pointwise, op_row(node.op).name, node.output);
  PointwiseArgs& p = step.data;
  const ValuePlace& out = place(node.output);
  use(&p.a, node.inputs[0]);
  use(&p.output, node.output);
  p.batch = out.batch;
  p.pixels = out.pixels();
  p.channels = out.channels;
  p.block_pixels = kBlockPixels;
  p.blocks = divide_up(p.pixels, p.block_pixels);
  step.tasks = p.batch * p.blocks;
  switch (node.op) {
    case OpType::silu: p.activation = Activation::silu; break;
    case OpType::gelu: p.activation = Activation::gelu; break;
    case OpType::quick_gelu: p.activation = Activation::quick_gelu; break;
    case OpType::gated_unit:
      p.kind = PointwiseKind::gate;
      p.gate_offset = out.channels;
      p.activation = attribute_int(plain(node.node), "act_fn") == 0 ? Activation::silu : Activation::gelu;
      break;
    default: {
      const bool same = plan_.shapes[static_cast<size_t>(node.inputs[0])] == plan_.shapes[static_cast<size_t>(node.inputs[1])];
      p.kind = same ? PointwiseKind::add : PointwiseKind::add_image;
      use(&p.b, node.inputs[1]);
    }
  }
}

void Lowering::lower_concat(const FusedNode& node) {
  const ValuePlace& out = place(node.output);
  int64_t channel = 0;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    auto& step = add_step<CopyArgs>(kernels_.copy, "concat", node.output);
    CopyArgs& a = step.data;
    use(&a.input, node.inputs[i]);
    use(&a.output, node.output);
    a.batch = out.batch;
    a.in_h = a.out_h = out.height;
    a.in_w = a.out_w = out.width;
    a.channels = place(node.inputs[i]).channels;
    a.output_channel = channel;
    a.last = i + 1 == node.inputs.size();
    channel += a.channels;
    step.tasks = a.batch * a.out_h;
  }
}

void Lowering::lower_resize(const FusedNode& node) {
  auto& step = add_step<CopyArgs>(kernels_.copy, "resize", node.output);
  CopyArgs& a = step.data;
  const ValuePlace &in = place(node.inputs[0]), &out = place(node.output);
  use(&a.input, node.inputs[0]);
  use(&a.output, node.output);
  a.batch = out.batch;
  a.in_h = in.height;
  a.in_w = in.width;
  a.out_h = out.height;
  a.out_w = out.width;
  a.channels = out.channels;
  a.last = true;
  step.tasks = a.batch * a.out_h;
}

void Lowering::lower_embedding(const FusedNode& node) {
  auto& step = add_step<EmbeddingArgs>(kernels_.embedding, "embedding", node.output);
  EmbeddingArgs& a = step.data;
  const Node& op = plain(node.node);
  const Weight &table = *find_weight(op, 1), &positions = *find_weight(op, 2);
  use(&a.ids, place(node.inputs[0]).buffer);
  a.table = table.data;
  a.table_dtype = table.dtype;
  a.table_stride = table.shape[1];
  a.positions = positions.data;
  a.positions_dtype = positions.dtype;
  a.positions_stride = positions.shape[1];
  a.table_scale = weight<float>(op, 3);
  a.positions_scale = weight<float>(op, 4);
  use(&a.output, node.output);
  a.batch = place(node.output).batch;
  a.length = place(node.output).width;
  a.size = place(node.output).channels;
  step.tasks = a.batch * a.length;
}

void Lowering::lower_timestep_embedding(const FusedNode& node) {
  auto& step = add_step<TimestepArgs>(timestep_embedding, "timestep_embedding", node.output);
  TimestepArgs& a = step.data;
  use(&a.timestep, place(node.inputs[0]).buffer);
  use(&a.output, node.output);
  a.size = place(node.output).channels;
  step.tasks = place(node.output).batch;
}

}  // namespace mdrt
