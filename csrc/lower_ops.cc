// Lowering of all other ops.
#include <algorithm>

#include "base/checked.h"
#include "lower.h"

namespace mdrt {
namespace {

constexpr int64_t kBlockPixels = 64;     // pixels per task of the kernels that walk over pixels
constexpr int64_t kBlockQueries = 256;   // keys are brought into panels once for so many

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t sums_bytes(int64_t rows, int64_t channels) { return checked_mul(rows, checked_mul(sums_row(channels), 4)); }

}  // namespace

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

// Those that the value's producer makes, or a step of their own.
const Lowering::ChannelSums& Lowering::sums_of(int32_t value) {
  ChannelSums& sums = sums_[value];
  if (sums.buffer >= 0) return sums;
  const ValuePlace& in = place(value);
  auto& step = add_step<GroupNormSumsArgs>(kernels_.group_norm_sums, "group_norm_sums", value);
  GroupNormSumsArgs& a = step.data;
  use(&a.input, value);
  a.pixels = in.pixels();
  a.block_pixels = 4 * kBlockPixels;
  a.blocks = divide_up(a.pixels, a.block_pixels);
  sums.rows = step.tasks = checked_mul(in.batch, a.blocks);
  sums.buffer = add_buffer(sums_bytes(sums.rows, in.padded()));
  use(&a.sums, sums.buffer);
  return sums;
}

void Lowering::make_sums(const FusedNode& node, GemmArgs* g) {
  ChannelSums& sums = sums_[node.output];
  if (sums.buffer < 0) sums.buffer = add_buffer(0);
  const int64_t channels = place(node.output).padded();
  use(&g->output_sums, sums.buffer, sums_bytes(sums.rows, channels));
  sums.rows += g->batch * g->blocks_y * g->blocks_x;
  plan_.buffers[static_cast<size_t>(sums.buffer)].size_bytes = ValuePlace::round_up(sums_bytes(sums.rows, channels), 64);
}

void Lowering::lower_group_norm(const FusedNode& node) {
  const Node& op = plain(node.node);
  const ValuePlace& in = place(node.inputs[0]);
  for (int32_t value : node.inputs) sums_of(value);
  auto& finish = add_step<GroupNormFinishArgs>(kernels_.group_norm_finish, "group_norm_finish", node.output);
  GroupNormFinishArgs& a = finish.data;
  for (int32_t value : node.inputs) {
    const ChannelSums& sums = sums_of(value);
    GroupNormFinishArgs::Source& source = a.sources[a.num_sources++];
    source.blocks = sums.rows / in.batch;
    source.channels = place(value).padded();
    a.k_channels += source.channels;
    use(&source.sums, sums.buffer);
  }
  a.channels = attribute_int(op, "num_channels");
  a.groups = attribute_int(op, "num_groups");
  a.eps = attribute_real(op, "eps");
  a.weight = weight<float>(op, 1);
  a.bias = weight<float>(op, 2);
  const int32_t norm_buffer = add_buffer(checked_mul(checked_mul(2 * in.batch, a.k_channels), 4));
  norm_buffers_[static_cast<size_t>(current_)] = norm_buffer;
  use(&a.norm, norm_buffer);
  finish.tasks = in.batch * a.groups;
  if (node.stats_only) return;

  auto& apply = add_step<NormApplyArgs>(kernels_.norm_apply, "norm_apply", node.output);
  NormApplyArgs& n = apply.data;
  int64_t k_channels;
  use_sources(n.sources, &n.num_sources, &k_channels, node.inputs);
  use(&n.output, node.output);
  use(&n.norm, norm_buffer);
  n.batch = in.batch;
  n.pixels = in.pixels();
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
    const Quantized q = add_quantized(p.batch, p.height, p.width, p.padded(), true, reads_widened_pixels());
    quantized_[{node.output, q.widened}] = q;
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
