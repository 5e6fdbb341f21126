// The op table as data, graph validation and shape inference.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "formats.h"
#include "graph.h"

namespace mdrt {

enum class InputKind : uint8_t { activation, optional_activation, many_activations, weight, optional_weight };
enum class AttributeType : uint8_t { integers, real, word };

struct OpInput {
  const char* name;
  InputKind kind;
  WeightKind weight_kind;    // for weights only
  bool is_integer;           // a vector of int32, not of fp32
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

// Input slots of conv2d and linear, and the first ones of embedding.
enum LayerSlot : size_t { kWeight = 1, kBias, kWeightScale, kWeightSum, kInputScale, kInputZeroPoint };

const OpRow& op_row(OpType op);
// nullptr when there is no such op.
const OpRow* find_op(const std::string& name, OpType* op);

// Attribute access by name; the name must be in the op's row.
int64_t attribute_int(const Node& node, const char* name, int index = 0);
double attribute_real(const Node& node, const char* name);

// Logical shape of the weight in this input slot, as the attributes state it.
Shape weight_shape(const Node& node, size_t slot);

// Shape of the node's output. `inputs`: one shape per node input, weights empty. A size of 0 is not known and is taken on
// trust, so validate() and infer_shapes() share one rule. Throws Error(status) naming the node and what does not fit.
Shape output_shape(const Node& node, const std::vector<const Shape*>& inputs, mdrt_status status);

// Checks everything about a graph that does not depend on sizes: inputs of the right kind, attributes in range, weights
// of the stored shape and dtype that the attributes demand, every weight used, names unique.
// Throws Error(MDRT_ERROR_BUNDLE) with a sentence naming node and field.
void validate(const Graph& graph);

// What is known about the shapes of all values before the inputs are: 0 for every size that depends on a symbol. Ranks and
// channels are always known. The graph must be valid.
std::vector<Shape> known_shapes(const Graph& graph);

// Shapes of all values (weights get {}) for these input shapes; validates them on the way. Also binds symbols.
// Throws Error(MDRT_ERROR_ARGUMENT).
std::vector<Shape> infer_shapes(const Graph& graph, const std::vector<Shape>& input_shapes);

// Multiply-adds of one node; 0 for ops that are not products of matrices.
int64_t node_macs(const Graph& graph, const Node& node, const std::vector<Shape>& shapes, const Shape& output);

// The whole table as JSON text, for Python.
std::string op_table_json();

}  // namespace mdrt
