// Fusion: the plain graph becomes a shorter list of fused nodes, each run as one kernel (GroupNorm: two).
#pragma once

#include <cstdint>
#include <vector>

#include "graph.h"
#include "ops.h"

namespace mdrt {

// One op with what was folded into it. Fields from `norm` on are for conv2d and linear only.
struct FusedNode {
  OpType op;
  int32_t node;                       // of the plain graph
  std::vector<int32_t> inputs;        // activations; a fused concat appears as its sources
  int32_t output;                     // value number
  Activation activation = Activation::none;   // conv2d, linear: of the output (gated: of the gate); group_norm: of the output
  bool alive = true;
  bool stats_only = false;            // group_norm: its consumer normalises while it loads

  int32_t norm = -1;                  // index of the FusedNode of the group_norm whose result is the input
  Activation input_activation = Activation::none;   // after that norm
  int32_t resize = -1;                // node of an upsample or resize_like before the (depthwise) convolution
  int32_t depthwise = -1;             // node of a depthwise_conv2d before this 1x1 convolution
  int32_t image_bias = -1;            // value (n, channels) added to every pixel of an image
  int32_t residual = -1;              // value of the output's shape, added last
  bool gated = false;
};

// `wanted[value]`: the value must exist in memory, so no fusion may swallow it. Not `enabled`: one fused node per node.
// Nodes that nothing wanted depends on are left out.
std::vector<FusedNode> fuse(const Graph& graph, const std::vector<Shape>& shapes, const std::vector<bool>& wanted, bool enabled);

}  // namespace mdrt
