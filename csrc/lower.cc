#include "lower.h"

#include <algorithm>

#include "base/checked.h"
#include "quantised.h"

namespace mdrt {
namespace {

int64_t element_bytes(DType dtype) { return dtype == DType::fp16 ? 2 : 4; }

}  // namespace

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
  is_normalised_.assign(static_cast<size_t>(graph_.value_count()), false);
  for (const FusedNode& node : fused_) {
    if (!node.alive || node.op != OpType::group_norm) continue;
    for (int32_t value : node.inputs) is_normalised_[static_cast<size_t>(value)] = true;
  }
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
  if (node.op == OpType::conv2d || node.op == OpType::linear) {
    return multiplies_integers(plain(node.node)) ? lower_gemm_int8(node) : lower_gemm(node);
  }
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

}  // namespace mdrt
