// The op table as data, graph validation and shape inference.
#pragma once

#include <string>
#include <vector>

#include "graph.h"

namespace mdrt {

enum class InputKind : uint8_t { activation, optional_activation, many_activations, weight, optional_weight };
enum class AttributeType : uint8_t { integers, real, word };

struct OpInput {
  const char* name;
  InputKind kind;
  WeightKind weight_kind;    // for weights only
};

struct OpAttribute {
  const char* name;
  AttributeType type;
  int count;                          // integers: how many
  double min, max;                    // integers and real
  std::vector<const char*> words;     // word
};

struct OpRow {
  const char* name;
  std::vector<OpInput> inputs;
  std::vector<OpAttribute> attributes;
};

const OpRow& op_row(OpType op);
// nullptr when there is no such op.
const OpRow* find_op(const std::string& name, OpType* op);

// Attribute access by name; the name must be in the op's row.
int64_t attribute_int(const Node& node, const char* name, int index = 0);
double attribute_real(const Node& node, const char* name);

using Shape = std::vector<int64_t>;    // logical, channels last

// The stored shape of a weight of this logical shape: what packing makes and the file must hold.
// Logical shapes: panel (out, in, kernel_h, kernel_w) or (out, in); vector (n); table (rows, n); depthwise (channels, kernel_h, kernel_w).
Shape stored_shape(WeightKind kind, DType dtype, const Shape& logical);

// Checks everything about a graph that does not depend on sizes: inputs of the right kind, attributes in range, weights
// of the stored shape and dtype that the attributes demand, every weight used, names unique.
// Throws Error(MDRT_ERROR_BUNDLE) with a sentence naming node and field.
void validate(const Graph& graph);

// Shapes of all values (weights get {}) for these input shapes; validates them on the way. Also binds symbols.
// Throws Error(MDRT_ERROR_ARGUMENT).
std::vector<Shape> infer_shapes(const Graph& graph, const std::vector<Shape>& input_shapes);

// Multiply-adds of one node.
int64_t node_macs(const Graph& graph, const Node& node, const std::vector<Shape>& shapes, const Shape& output);

// The whole table as JSON text, for Python.
std::string op_table_json();

}  // namespace mdrt
