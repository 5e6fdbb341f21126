// Lowering of convolutions and linear layers that multiply floats, and what those that multiply integers have in common with them.
#include <algorithm>

#include "lower.h"

namespace mdrt {

void Lowering::set_input(const FusedNode& node, const Strip& strip, GemmArgs* g) {
  use_sources(g->sources, &g->num_sources, &g->k_channels, node.inputs, strip.in_pixel);
  if (node.norm >= 0) {
    use(&g->norm, norm_buffers_[static_cast<size_t>(node.norm)], strip.image * 2 * g->k_channels * 4);
    g->input_activation = node.input_activation;
  }
}

void Lowering::set_product(const FusedNode& node, const Strip& strip, GemmArgs* g) {
  const Node& op = plain(node.node);
  const Weight& panels = *find_weight(op, kWeight);
  g->weight = panels.data;
  g->weight_dtype = panels.dtype;
  g->panels = panels.shape[0];
  g->columns = plan_.shapes[static_cast<size_t>(node.output)].back();
  g->bias = weight<float>(op, kBias);
  g->weight_scale = weight<float>(op, kWeightScale);
  g->activation = node.activation;
  g->gated = node.gated;
  if (node.image_bias >= 0) {
    g->image_bias_stride = place(node.image_bias).stride;
    use(&g->image_bias, place(node.image_bias).buffer, strip.image * g->image_bias_stride * 4);
  }
  if (node.residual >= 0) use(&g->residual, node.residual, strip.out_pixel);
}

bool Lowering::wants_winograd(bool pays) const {
  return request_.winograd == Winograd::wherever_possible || (request_.winograd == Winograd::where_it_pays && pays);
}

Lowering::GemmKernel Lowering::choose_gemm(const FusedNode& node) const {
  GemmArgs g = {};
  set_geometry(node, &g);
  for (int32_t value : node.inputs) g.k_channels += place(value).padded();
  g.panels = find_weight(plain(node.node), kWeight)->shape[0];
  g.columns = plan_.shapes[static_cast<size_t>(node.output)].back();
  g.gated = node.gated;
  if (narrow_pays(g, kernels_.tile)) return {kernels_.narrow, "narrow", kernels_.narrow_scratch_bytes};
  if (can_use_winograd(g) && wants_winograd(winograd_pays(g))) return {kernels_.winograd, "winograd", kernels_.winograd_scratch_bytes};
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
    choose_blocks(&g, kernels_.tile, node.norm >= 0 || node.image_bias >= 0 || makes_sums(node));
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
  if (makes_sums(node) && kernel.run != kernels_.narrow) make_sums(node, &g);
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

}  // namespace mdrt
