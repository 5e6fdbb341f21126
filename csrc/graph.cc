#include "graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "base/checked.h"
#include "ops.h"
#include "quantised.h"

namespace mdrt {

int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::fp32: return 4;
    case DType::fp16: return 2;
    case DType::int8: return 1;
    case DType::int32: return 4;
    case DType::uint8: return 1;
    case DType::fp64: return 8;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::fp32: return "fp32";
    case DType::fp16: return "fp16";
    case DType::int8: return "int8";
    case DType::int32: return "int32";
    case DType::uint8: return "uint8";
    case DType::fp64: return "fp64";
  }
  return "";
}

const std::string& Graph::value_name(int32_t value) const {
  if (value < weight_base()) return inputs[static_cast<size_t>(value)].name;
  if (value < node_base()) return weights[static_cast<size_t>(value - weight_base())].name;
  return nodes[static_cast<size_t>(value - node_base())].name;
}

bool is_value_name(std::string_view name) {
  if (name.empty() || name.size() > 256) return false;
  size_t part = 0;    // where the part that runs up to the next '/' begins
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i == name.size() || name[i] == '/') {
      const std::string_view text = name.substr(part, i - part);
      if (text.empty() || text == "." || text == "..") return false;
      part = i + 1;
      continue;
    }
    const char c = name[i];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

bool is_word(std::string_view text) {
  const auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; };
  return !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), allowed);
}

namespace {

constexpr int64_t kMaxMacs = int64_t{1} << 60;    // of one run

[[noreturn]] void refuse(const Graph& graph, const std::string& what) {
  throw Error(MDRT_ERROR_BUNDLE, "component '" + graph.name + "': " + what);
}

std::string where(const Node& node) { return "node '" + node.name + "' (" + op_row(node.op).name + "): "; }

void check_names(const Graph& graph) {
  std::vector<std::string_view> names;
  names.reserve(static_cast<size_t>(graph.value_count()));
  for (int32_t value = 0; value < graph.value_count(); ++value) {
    const std::string& name = graph.value_name(value);
    if (!is_value_name(name))
      refuse(graph, "value " + std::to_string(value) + " has a name that is not 1 to 256 bytes of [A-Za-z0-9._/-]");
    names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) refuse(graph, "two values are called '" + std::string(*twin) + "'");
}

void check_inputs(const Graph& graph) {
  if (graph.inputs.empty()) refuse(graph, "inputs is empty");
  for (const GraphInput& input : graph.inputs) {
    const std::string at = "input '" + input.name + "': ";
    if (input.dtype != DType::fp32 && input.dtype != DType::int32) refuse(graph, at + "dtype must be fp32 or int32");
    if (input.shape.empty() || input.shape.size() > 4) refuse(graph, at + "shape must have 1 to 4 dimensions");
    for (const Dimension& dimension : input.shape) {
      if (dimension.symbol.empty() ? dimension.size < 1 || dimension.size > INT32_MAX : !is_word(dimension.symbol))
        refuse(graph, at + "a dimension of shape is neither an integer from 1 to 2^31 - 1 nor a symbol of [a-z_]");
    }
    if (input.dtype == DType::fp32 && input.shape.size() >= 2 && !input.shape.back().symbol.empty())
      refuse(graph, at + "the last dimension of shape, the channels, must be a number");
  }
}

void check_attributes(const Graph& graph, const Node& node) {
  const OpRow& row = op_row(node.op);
  if (node.attributes.size() != row.attributes.size()) refuse(graph, where(node) + "attributes are missing");
  for (size_t i = 0; i < row.attributes.size(); ++i) {
    const OpAttribute& attribute = row.attributes[i];
    const AttributeValue& value = node.attributes[i];
    const double low = attribute.min, high = attribute.type == AttributeType::word
                                                 ? static_cast<double>(attribute.words.size() - 1)
                                                 : attribute.max;
    bool fits = true;
    if (attribute.type == AttributeType::real) {
      fits = std::isfinite(value.real) && value.real >= low && value.real <= high;
    } else {
      for (size_t k = 0; k < static_cast<size_t>(attribute.count); ++k)
        fits = fits && value.integers[k] >= static_cast<int64_t>(low) && value.integers[k] <= static_cast<int64_t>(high);
    }
    if (fits) continue;
    char range[80];
    snprintf(range, sizeof range, " must be within %g and %g", low, high);
    refuse(graph, where(node) + "attribute " + attribute.name + range);
  }
}

void check_weight(const Graph& graph, const Node& node, size_t slot, const OpInput& input) {
  const Weight& weight = graph.weights[static_cast<size_t>(node.inputs[slot] - graph.weight_base())];
  const std::string at = where(node) + "weight '" + weight.name + "' ";
  if (find_format(input.weight_kind, weight.dtype) == nullptr)
    refuse(graph, at + "is " + dtype_name(weight.dtype) + ", a dtype that a " + weight_kind_name(input.weight_kind) +
                      " is never stored in");
  const std::string misfit = dtype_misfit(node, slot, weight.dtype);
  if (!misfit.empty()) refuse(graph, at + misfit);
  const Shape want = stored_shape(input.weight_kind, weight.dtype, weight_shape(node, slot));
  if (want == weight.shape) return;
  std::string text;
  for (const Shape* shape : {&weight.shape, &want}) {
    text += text.empty() ? "has the stored shape [" : "], the attributes demand [";
    for (size_t i = 0; i < shape->size(); ++i) text += (i ? ", " : "") + std::to_string((*shape)[i]);
  }
  refuse(graph, at + text + "]");
}

const OpInput& slot_of(const OpRow& row, size_t slot) {
  return row.inputs[0].kind == InputKind::many_activations ? row.inputs[0] : row.inputs[slot];
}

void check_node(const Graph& graph, int32_t index, std::vector<bool>& used) {
  const Node& node = graph.nodes[static_cast<size_t>(index)];
  const OpRow& row = op_row(node.op);
  const bool many = row.inputs[0].kind == InputKind::many_activations;
  const size_t required = many ? 2
                               : static_cast<size_t>(std::count_if(row.inputs.begin(), row.inputs.end(), [](const OpInput& i) {
                                   return i.kind == InputKind::activation || i.kind == InputKind::weight;
                                 }));
  if (node.inputs.size() < required || (!many && node.inputs.size() > row.inputs.size()))
    refuse(graph, where(node) + std::to_string(node.inputs.size()) + " inputs is the wrong number");
  check_attributes(graph, node);
  const std::string misfit = quantisation_misfit(node);
  if (!misfit.empty()) refuse(graph, where(node) + misfit);
  const int32_t own = graph.node_base() + index;
  for (size_t slot = 0; slot < node.inputs.size(); ++slot) {
    const int32_t value = node.inputs[slot];
    const OpInput& input = slot_of(row, slot);
    const std::string at = where(node) + "input " + std::to_string(slot) + " (" + input.name + ") ";
    if (value < 0 || value >= own)
      refuse(graph, at + "is value " + std::to_string(value) + "; a node uses values 0 to " + std::to_string(own - 1));
    const bool wants_weight = input.kind == InputKind::weight || input.kind == InputKind::optional_weight;
    if (wants_weight != graph.is_weight(value))
      refuse(graph, at + (wants_weight ? "must be a weight" : "must not be a weight"));
    if (wants_weight) {
      check_weight(graph, node, slot, input);
      used[static_cast<size_t>(value - graph.weight_base())] = true;
      continue;
    }
    const bool is_ids = value < graph.weight_base() && graph.inputs[static_cast<size_t>(value)].dtype == DType::int32;
    const bool wants_ids = node.op == OpType::embedding;
    if (is_ids != wants_ids) refuse(graph, at + (wants_ids ? "must be an int32 input of the graph" : "must be fp32"));
  }
}

void check_outputs(const Graph& graph) {
  if (graph.outputs.empty()) refuse(graph, "outputs is empty");
  std::vector<std::string_view> names;
  for (const GraphOutput& output : graph.outputs) {
    if (!is_value_name(output.name)) refuse(graph, "an output's name is not 1 to 256 bytes of [A-Za-z0-9._/-]");
    if (output.value < graph.node_base() || output.value >= graph.value_count())
      refuse(graph, "output '" + output.name + "': value " + std::to_string(output.value) + " is no node");
    names.push_back(output.name);
  }
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) refuse(graph, "two outputs are called '" + std::string(*twin) + "'");
}

// Fills in the shapes of all nodes; sizes of 0 in the inputs' shapes stay unknown.
void infer_nodes(const Graph& graph, std::vector<Shape>& shapes, mdrt_status status) {
  std::vector<const Shape*> inputs;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    inputs.clear();
    for (const int32_t value : node.inputs) inputs.push_back(&shapes[static_cast<size_t>(value)]);
    shapes[static_cast<size_t>(graph.node_base()) + i] = output_shape(node, inputs, status);
  }
}

std::string describe(const GraphInput& input) {
  std::string text = "(";
  for (const Dimension& dimension : input.shape)
    text += (text.size() > 1 ? ", " : "") + (dimension.symbol.empty() ? std::to_string(dimension.size) : dimension.symbol);
  return text + ")";
}

// Compares the caller's shapes with the graph's inputs; equal symbols must be equal sizes.
void bind_inputs(const Graph& graph, const std::vector<Shape>& shapes) {
  const auto misfit = [](const GraphInput& input, const std::string& what) {
    return Error(MDRT_ERROR_ARGUMENT, "input '" + input.name + "' is " + describe(input) + "; " + what);
  };
  struct Binding {
    const std::string* symbol;
    int64_t size;
  };
  std::vector<Binding> bindings;
  for (size_t n = 0; n < graph.inputs.size(); ++n) {
    const GraphInput& input = graph.inputs[n];
    if (shapes[n].size() != input.shape.size())
      throw misfit(input, "an array of " + std::to_string(shapes[n].size()) + " dimensions was given");
    int64_t elements = 1;
    for (size_t i = 0; i < input.shape.size(); ++i) {
      const Dimension& dimension = input.shape[i];
      const int64_t size = shapes[n][i];
      if (size < 1 || size > INT32_MAX) throw misfit(input, "dimension " + std::to_string(i) + " is " + std::to_string(size));
      elements = checked_mul(elements, size);
      int64_t want = dimension.size;
      if (!dimension.symbol.empty()) {
        const auto bound = std::find_if(bindings.begin(), bindings.end(),
                                        [&](const Binding& b) { return *b.symbol == dimension.symbol; });
        want = bound == bindings.end() ? size : bound->size;
        if (bound == bindings.end()) bindings.push_back({&dimension.symbol, size});
      }
      if (size != want)
        throw misfit(input, "dimension " + std::to_string(i) + " is " + std::to_string(size) + ", not " + std::to_string(want));
    }
    if (elements > int64_t{1} << 40) throw misfit(input, "more than 2^40 elements were given");
  }
}

}  // namespace

void validate(const Graph& graph) {
  check_inputs(graph);
  check_names(graph);
  std::vector<bool> used(graph.weights.size(), false);
  for (size_t i = 0; i < graph.nodes.size(); ++i) check_node(graph, static_cast<int32_t>(i), used);
  const auto idle = std::find(used.begin(), used.end(), false);
  if (idle != used.end())
    refuse(graph, "weight '" + graph.weights[static_cast<size_t>(idle - used.begin())].name + "' is used by no node");
  check_outputs(graph);

  try {
    known_shapes(graph);
  } catch (const Error& error) {
    refuse(graph, error.what());
  }
}

std::vector<Shape> known_shapes(const Graph& graph) {
  std::vector<Shape> shapes(static_cast<size_t>(graph.value_count()));
  for (size_t n = 0; n < graph.inputs.size(); ++n)
    for (const Dimension& dimension : graph.inputs[n].shape) shapes[n].push_back(dimension.size);
  infer_nodes(graph, shapes, MDRT_ERROR_BUNDLE);
  return shapes;
}

std::vector<Shape> infer_shapes(const Graph& graph, const std::vector<Shape>& input_shapes) {
  if (input_shapes.size() != graph.inputs.size())
    throw fail(MDRT_ERROR_ARGUMENT, "component '%s' has %zu inputs, %zu were given", graph.name.c_str(), graph.inputs.size(),
               input_shapes.size());
  bind_inputs(graph, input_shapes);
  std::vector<Shape> shapes(static_cast<size_t>(graph.value_count()));
  std::copy(input_shapes.begin(), input_shapes.end(), shapes.begin());
  infer_nodes(graph, shapes, MDRT_ERROR_ARGUMENT);
  int64_t macs = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    macs = checked_add(macs, node_macs(graph, graph.nodes[i], shapes, shapes[static_cast<size_t>(graph.node_base()) + i]));
    if (macs > kMaxMacs)
      throw fail(MDRT_ERROR_ARGUMENT, "component '%s' needs more than 2^60 multiply-adds; use smaller shapes", graph.name.c_str());
  }
  return shapes;
}

}  // namespace mdrt
