#include "quantised.h"

#include <cfloat>
#include <cstdlib>
#include <vector>

#include "base/checked.h"
#include "ops.h"

namespace mdrt {
namespace {

// The sum of this many products of 255 and 127 is below 2^31.
constexpr int64_t kMaxProducts = 65536;
constexpr int kLargest = 127;    // weight

bool is_product(const Node& node) { return node.op == OpType::conv2d || node.op == OpType::linear; }

// Products of one sum, padding of the channels included.
int64_t products(const Node& node) {
  const Shape logical = weight_shape(node, kWeight);
  const int64_t taps = logical.size() == 4 ? logical[2] * logical[3] : 1;
  return taps * round_up(logical[1], kPanel);
}

// Whether every output takes one pixel or token, so that the scale of its input may be its own.
bool takes_one_pixel(const Node& node) {
  if (node.op != OpType::conv2d) return true;
  for (int axis = 0; axis < 2; ++axis)
    if (attribute_int(node, "kernel_size", axis) != 1 || attribute_int(node, "stride", axis) != 1) return false;
  for (int side = 0; side < 4; ++side)
    if (attribute_int(node, "pads", side) != 0) return false;
  return true;
}

// One node of a graph with mapped weights.
class Layer {
 public:
  Layer(const Graph& graph, const Node& node) : graph_(graph), node_(node) {}

  void check_values() const {
    check_scales(kWeightScale);
    if (node_.op == OpType::embedding) return check_scales(kWeightScale + 1);
    if (!multiplies_integers(node_)) return;
    check_range(kWeightSum, -kLargest * products(node_), kLargest * products(node_));
    if (node_.inputs.size() <= kInputScale) return;
    check_scales(kInputScale);
    check_range(kInputZeroPoint, -128, 127);
  }

  void verify() const {
    check_no_minus_128(kWeight);
    if (node_.op == OpType::embedding) return check_no_minus_128(kWeight + 1);
    if (!multiplies_integers(node_)) return;
    const std::vector<int64_t> sums = column_sums();
    const int32_t* stated = data<int32_t>(kWeightSum);
    for (size_t i = 0; i < sums.size(); ++i)
      if (stated[i] != sums[i])
        refuse(kWeightSum, "entry " + std::to_string(i) + " is " + std::to_string(stated[i]) + ", the weights' sum is " +
                               std::to_string(sums[i]));
  }

 private:
  [[noreturn]] void refuse(size_t slot, const std::string& what) const {
    const OpRow& row = op_row(node_.op);
    throw Error(MDRT_ERROR_BUNDLE, "component '" + graph_.name + "': node '" + node_.name + "' (" + row.name + "): " +
                                       row.inputs[slot].name + " '" + weight(slot).name + "' " + what);
  }

  const Weight& weight(size_t slot) const { return graph_.weights[static_cast<size_t>(node_.inputs[slot] - graph_.weight_base())]; }

  template <class T>
  const T* data(size_t slot) const {
    return reinterpret_cast<const T*>(weight(slot).data);
  }

  // Normal numbers: the inverse of every scale is finite.
  void check_scales(size_t slot) const {
    const float* scales = data<float>(slot);
    const int64_t count = weight_shape(node_, slot)[0];
    for (int64_t i = 0; i < count; ++i)
      if (!(scales[i] >= FLT_MIN && scales[i] <= FLT_MAX))
        refuse(slot, "entry " + std::to_string(i) + " is " + std::to_string(scales[i]) + "; scales are finite, positive and not subnormal");
  }

  void check_range(size_t slot, int64_t low, int64_t high) const {
    const int32_t* values = data<int32_t>(slot);
    const int64_t count = weight_shape(node_, slot)[0];
    for (int64_t i = 0; i < count; ++i)
      if (values[i] < low || values[i] > high)
        refuse(slot, "entry " + std::to_string(i) + " is " + std::to_string(values[i]) + ", not within " + std::to_string(low) +
                         " and " + std::to_string(high));
  }

  void check_no_minus_128(size_t slot) const {
    const int8_t* values = data<int8_t>(slot);
    for (int64_t i = 0; i < weight(slot).size_bytes; ++i)
      if (values[i] < -kLargest) refuse(slot, "byte " + std::to_string(i) + " is -128; int8 weights are within -127 and 127");
  }

  // Of the panels [out / 16][K / 4][16][4].
  std::vector<int64_t> column_sums() const {
    const Weight& panels = weight(kWeight);
    const int64_t groups = panels.shape[1], bytes_of_group = panels.shape[2], depth = bytes_of_group / kPanel;
    const int8_t* q = data<int8_t>(kWeight);
    std::vector<int64_t> sums(static_cast<size_t>(panels.shape[0] * kPanel));
    for (int64_t panel = 0; panel < panels.shape[0]; ++panel)
      for (int64_t group = 0; group < groups; ++group, q += bytes_of_group)
        for (int64_t i = 0; i < bytes_of_group; ++i) sums[static_cast<size_t>(panel * kPanel + i / depth)] += q[i];
    return sums;
  }

  const Graph& graph_;
  const Node& node_;
};

}  // namespace

bool is_quantised(const Node& node) {
  return (is_product(node) || node.op == OpType::embedding) && node.inputs.size() > kWeightScale;
}

bool multiplies_integers(const Node& node) { return is_product(node) && node.inputs.size() > kWeightSum; }

int format_minor(const Node& node) {
  if (!is_quantised(node)) return 0;
  return is_product(node) && !multiplies_integers(node) ? 2 : 1;
}

std::string dtype_misfit(const Node& node, size_t slot, DType dtype) {
  const OpInput& input = op_row(node.op).inputs[slot];
  const std::string is = std::string("is ") + dtype_name(dtype);
  if (input.is_integer) return dtype == DType::int32 ? "" : is + "; " + input.name + " must be int32";
  if (input.weight_kind == WeightKind::vector) return dtype == DType::fp32 ? "" : is + "; " + input.name + " must be fp32";
  if (dtype == DType::int8 && !is_quantised(node)) return is + ", but the node has no weight_scale";
  if (dtype != DType::int8 && is_quantised(node)) return is + "; with weight_scale it must be int8";
  return "";
}

std::string quantisation_misfit(const Node& node) {
  if (!is_quantised(node)) return "";
  const std::vector<OpInput>& slots = op_row(node.op).inputs;
  const size_t count = node.inputs.size();
  if (count == (is_product(node) ? kInputScale : kWeightScale) + 1)
    return std::string("input ") + std::to_string(count) + " (" + slots[count].name + ") is missing; it belongs to " + slots[count - 1].name;
  if (!multiplies_integers(node)) return "";
  if (count <= kInputScale && !takes_one_pixel(node))
    return "input 5 (input_scale) is missing; only an int8 convolution of 1x1, stride 1 and no pads goes without";
  if (products(node) > kMaxProducts)
    return "weight is int8 and has sums of " + std::to_string(products(node)) + " products; at most " + std::to_string(kMaxProducts) +
           " are exact";
  return "";
}

void check_quantised_values(const Graph& graph) {
  for (const Node& node : graph.nodes)
    if (is_quantised(node)) Layer(graph, node).check_values();
}

void verify_quantised(const Graph& graph) {
  for (const Node& node : graph.nodes)
    if (is_quantised(node)) Layer(graph, node).verify();
}

}  // namespace mdrt
