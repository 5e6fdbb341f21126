// Layers with int8 weights: conv2d and linear, which multiply integers or floats, and embedding (docs/numerics.md, "int8").
#pragma once

#include <string>

#include "graph.h"

namespace mdrt {

// Whether the node's weights are int8: it then has a weight_scale.
bool is_quantised(const Node& node);

// Whether its input becomes int8 too, so that integers are multiplied: it then has a weight_sum as well.
bool multiplies_integers(const Node& node);

// The least minor of format 1 that has such a node.
int format_minor(const Node& node);

// What is wrong with a weight of this dtype in this slot, or "".
std::string dtype_misfit(const Node& node, size_t slot, DType dtype);

// What is wrong with a node whose attributes are in range, or "": which inputs belong together, where a static
// input range is needed, and how many products a sum may have to be exact in int32.
std::string quantisation_misfit(const Node& node);

// Scales, zero points and the size of sums, of a valid graph whose weights are mapped. Reads no int8 weight.
// Throws Error(MDRT_ERROR_BUNDLE).
void check_quantised_values(const Graph& graph);

// Every int8 weight is within -127 and 127, and every weight_sum is the sum of its column. Throws Error(MDRT_ERROR_BUNDLE).
void verify_quantised(const Graph& graph);

}  // namespace mdrt
