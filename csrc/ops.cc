#include "ops.h"

#include <cstdarg>
#include <cstring>

#include "base/checked.h"

namespace mdrt {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;    // of one value
constexpr int64_t kMaxDimension = INT32_MAX;

const std::vector<OpRow>& table() {
#define MDRT_LIST(...) \
  { __VA_ARGS__ }
#define IN(name) OpInput{#name, InputKind::activation, WeightKind::panel, false},
#define OPT(name) OpInput{#name, InputKind::optional_activation, WeightKind::panel, false},
#define MANY(name) OpInput{#name, InputKind::many_activations, WeightKind::panel, false},
#define WEIGHT(name, kind) OpInput{#name, InputKind::weight, WeightKind::kind, false},
#define OPT_WEIGHT(name, kind) OpInput{#name, InputKind::optional_weight, WeightKind::kind, false},
#define OPT_INTEGERS(name) OpInput{#name, InputKind::optional_weight, WeightKind::vector, true},
#define INT(name, min, max) OpAttribute{#name, AttributeType::integers, 1, min, max, {}},
#define INTS(name, count, min, max) OpAttribute{#name, AttributeType::integers, count, min, max, {}},
#define REAL(name, min, max) OpAttribute{#name, AttributeType::real, 1, min, max, {}},
#define WORD(name, ...) OpAttribute{#name, AttributeType::word, 1, 0, 0, {__VA_ARGS__}},
#define MDRT_OP(name, inputs, attributes) OpRow{#name, MDRT_LIST inputs, MDRT_LIST attributes},
  static const std::vector<OpRow> rows = {
#include "ops.def"
  };
#undef MDRT_OP
#undef WORD
#undef REAL
#undef INTS
#undef INT
#undef OPT_INTEGERS
#undef OPT_WEIGHT
#undef WEIGHT
#undef MANY
#undef OPT
#undef IN
#undef MDRT_LIST
  return rows;
}

const AttributeValue& attribute(const Node& node, const char* name) {
  const OpRow& row = op_row(node.op);
  for (size_t i = 0; i < row.attributes.size() && i < node.attributes.size(); ++i)
    if (strcmp(row.attributes[i].name, name) == 0) return node.attributes[i];
  throw fail(MDRT_ERROR_INTERNAL, "%s has no attribute %s", row.name, name);
}

// The shape rules of one node; every refusal names the node.
class ShapeRule {
 public:
  ShapeRule(const Node& node, const std::vector<const Shape*>& inputs, mdrt_status status)
      : node_(node), inputs_(inputs), status_(status) {}

  Shape output() const;

 private:
  Shape convolution(const char* in_channels, const char* out_channels) const;
  Shape linear() const;
  Shape attention() const;
  Shape group_norm() const;
  Shape layer_norm() const;
  Shape gated_unit() const;
  Shape add() const;
  Shape concat() const;
  Shape upsample() const;
  Shape resize_like() const;
  Shape embedding() const;
  Shape timestep_embedding() const;

  [[noreturn]] __attribute__((format(printf, 2, 3))) void refuse(const char* format, ...) const {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Error(status_, "node '" + node_.name + "' (" + op_row(node_.op).name + "): " + text);
  }

  const Shape& in(size_t i) const { return *inputs_[i]; }
  int64_t integer(const char* name, int index = 0) const { return attribute_int(node_, name, index); }
  static bool same(int64_t a, int64_t b) { return a == 0 || b == 0 || a == b; }

  void want_rank(size_t i, size_t low, size_t high, const char* name) const {
    const size_t rank = in(i).size();
    if (rank < low || rank > high)
      refuse("input %s has %zu dimensions, not %s", name, rank,
             low == high ? std::to_string(low).c_str() : (std::to_string(low) + " to " + std::to_string(high)).c_str());
  }
  void want_channels(size_t i, const char* name, const char* attribute) const {
    const int64_t channels = in(i).back(), wanted = integer(attribute);
    if (!same(channels, wanted))
      refuse("input %s has %lld channels, %s is %lld", name, static_cast<long long>(channels), attribute,
             static_cast<long long>(wanted));
  }
  void want_same_batch(size_t i, const char* name, const char* first) const {
    if (!same(in(0)[0], in(i)[0]))
      refuse("%s has batch %lld, %s has %lld", name, static_cast<long long>(in(i)[0]), first,
             static_cast<long long>(in(0)[0]));
  }

  const Node& node_;
  const std::vector<const Shape*>& inputs_;
  mdrt_status status_;
};

// Product, 0 when a factor is not known.
int64_t known_product(const int64_t* from, const int64_t* to) {
  int64_t product = 1;
  for (; from != to; ++from) product = checked_mul(product, *from);
  return product;
}

// Tokens of a sequence or of a map taken row by row.
int64_t tokens(const Shape& shape) { return known_product(shape.data() + 1, shape.data() + shape.size() - 1); }

Shape ShapeRule::output() const {
  switch (node_.op) {
    case OpType::conv2d: return convolution("in_channels", "out_channels");
    case OpType::depthwise_conv2d: return convolution("channels", "channels");
    case OpType::linear: return linear();
    case OpType::attention: return attention();
    case OpType::group_norm: return group_norm();
    case OpType::layer_norm: return layer_norm();
    case OpType::silu:
    case OpType::gelu:
    case OpType::quick_gelu: want_rank(0, 2, 4, "x"); return in(0);
    case OpType::gated_unit: return gated_unit();
    case OpType::add: return add();
    case OpType::concat: return concat();
    case OpType::upsample: return upsample();
    case OpType::resize_like: return resize_like();
    case OpType::embedding: return embedding();
    case OpType::timestep_embedding: return timestep_embedding();
  }
  refuse("unknown op");
}

// pads: top, left, bottom, right.
Shape ShapeRule::convolution(const char* in_channels, const char* out_channels) const {
  want_rank(0, 4, 4, "x");
  want_channels(0, "x", in_channels);
  Shape out = {in(0)[0], 0, 0, integer(out_channels)};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = in(0)[static_cast<size_t>(axis) + 1];
    if (size == 0) continue;
    const int64_t kernel = integer("kernel_size", axis), stride = integer("stride", axis);
    const int64_t room = checked_add(size, integer("pads", axis) + integer("pads", axis + 2)) - kernel;
    if (room < 0)
      refuse("kernel_size %lld is larger than the padded %s %lld", static_cast<long long>(kernel),
             axis == 0 ? "height" : "width", static_cast<long long>(room + kernel));
    out[static_cast<size_t>(axis) + 1] = room / stride + 1;
  }
  return out;
}

Shape ShapeRule::linear() const {
  want_rank(0, 2, 4, "x");
  want_channels(0, "x", "in_features");
  Shape out = in(0);
  out.back() = integer("out_features");
  return out;
}

Shape ShapeRule::attention() const {
  want_rank(0, 3, 4, "q");
  want_rank(1, 3, 4, "k");
  want_rank(2, 3, 4, "v");
  want_same_batch(1, "k", "q");
  want_same_batch(2, "v", "q");
  const int64_t channels = in(0).back(), heads = integer("num_heads");
  if (!same(channels, in(1).back()) || !same(channels, in(2).back()))
    refuse("q, k and v have %lld, %lld and %lld channels; they must be equal", static_cast<long long>(channels),
           static_cast<long long>(in(1).back()), static_cast<long long>(in(2).back()));
  if (channels % heads != 0)
    refuse("num_heads %lld does not divide %lld channels", static_cast<long long>(heads), static_cast<long long>(channels));
  if (in(1).size() != in(2).size()) refuse("k and v have %zu and %zu dimensions", in(1).size(), in(2).size());
  for (size_t i = 1; i + 1 < in(1).size(); ++i)
    if (!same(in(1)[i], in(2)[i])) refuse("k and v have different numbers of tokens");
  if (integer("is_causal") != 0 && !same(tokens(in(0)), tokens(in(1))))
    refuse("is_causal needs as many keys (%lld) as queries (%lld)", static_cast<long long>(tokens(in(1))),
           static_cast<long long>(tokens(in(0))));
  return in(0);
}

Shape ShapeRule::group_norm() const {
  want_rank(0, 2, 4, "x");
  want_channels(0, "x", "num_channels");
  if (integer("num_channels") % integer("num_groups") != 0)
    refuse("num_groups %lld does not divide num_channels %lld", static_cast<long long>(integer("num_groups")),
           static_cast<long long>(integer("num_channels")));
  return in(0);
}

Shape ShapeRule::layer_norm() const {
  want_rank(0, 2, 4, "x");
  want_channels(0, "x", "normalized_shape");
  return in(0);
}

Shape ShapeRule::gated_unit() const {
  want_rank(0, 2, 4, "x");
  if (in(0).back() % 2 != 0) refuse("input x has %lld channels, an odd number", static_cast<long long>(in(0).back()));
  Shape out = in(0);
  out.back() /= 2;
  return out;
}

Shape ShapeRule::add() const {
  want_rank(0, 2, 4, "a");
  want_rank(1, 2, 4, "b");
  const Shape &a = in(0), &b = in(1);
  if (a.size() != b.size()) {
    if (b.size() != 2) refuse("b has %zu dimensions; it needs as many as a (%zu), or 2", b.size(), a.size());
    want_same_batch(1, "b", "a");
    if (!same(a.back(), b.back()))
      refuse("a has %lld channels, b has %lld", static_cast<long long>(a.back()), static_cast<long long>(b.back()));
    return a;
  }
  Shape out = a;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i]))
      refuse("dimension %zu of a is %lld, of b %lld", i, static_cast<long long>(a[i]), static_cast<long long>(b[i]));
    if (a[i] == 0) out[i] = b[i];
  }
  return out;
}

Shape ShapeRule::concat() const {
  want_rank(0, 2, 4, "0");
  Shape out = in(0);
  for (size_t n = 1; n < inputs_.size(); ++n) {
    const Shape& other = in(n);
    if (other.size() != out.size()) refuse("input %zu has %zu dimensions, input 0 has %zu", n, other.size(), out.size());
    for (size_t i = 0; i + 1 < out.size(); ++i) {
      if (!same(out[i], other[i]))
        refuse("dimension %zu of input %zu is %lld, of input 0 %lld", i, n, static_cast<long long>(other[i]),
               static_cast<long long>(out[i]));
      if (out[i] == 0) out[i] = other[i];
    }
    out.back() = checked_add(out.back(), other.back());
  }
  return out;
}

Shape ShapeRule::upsample() const {
  want_rank(0, 4, 4, "x");
  Shape out = in(0);
  for (size_t axis = 1; axis < 3; ++axis) out[axis] = checked_mul(out[axis], integer("scale_factor"));
  return out;
}

Shape ShapeRule::resize_like() const {
  want_rank(0, 4, 4, "x");
  want_rank(1, 4, 4, "like");
  want_same_batch(1, "like", "x");
  return {in(0)[0], in(1)[1], in(1)[2], in(0)[3]};
}

Shape ShapeRule::embedding() const {
  want_rank(0, 2, 2, "input_ids");
  const int64_t length = in(0)[1], longest = integer("max_position_embeddings");
  if (length > longest)
    refuse("%lld ids, max_position_embeddings is %lld", static_cast<long long>(length), static_cast<long long>(longest));
  return {in(0)[0], length, integer("embedding_dim")};
}

Shape ShapeRule::timestep_embedding() const {
  want_rank(0, 1, 1, "timestep");
  if (integer("embedding_dim") % 2 != 0) refuse("embedding_dim %lld is odd", static_cast<long long>(integer("embedding_dim")));
  return {in(0)[0], integer("embedding_dim")};
}

}  // namespace

const OpRow& op_row(OpType op) { return table()[static_cast<size_t>(op)]; }

const OpRow* find_op(const std::string& name, OpType* op) {
  for (const OpRow& row : table()) {
    if (name != row.name) continue;
    if (op != nullptr) *op = static_cast<OpType>(&row - table().data());
    return &row;
  }
  return nullptr;
}

int64_t attribute_int(const Node& node, const char* name, int index) {
  return attribute(node, name).integers[static_cast<size_t>(index)];
}

double attribute_real(const Node& node, const char* name) { return attribute(node, name).real; }

Shape weight_shape(const Node& node, size_t slot) {
  const auto integer = [&](const char* name, int index = 0) { return attribute_int(node, name, index); };
  switch (node.op) {
    case OpType::conv2d:
      if (slot >= kInputScale) return {1};
      if (slot != kWeight) return {integer("out_channels")};
      return {integer("out_channels"), integer("in_channels"), integer("kernel_size", 0), integer("kernel_size", 1)};
    case OpType::depthwise_conv2d:
      if (slot == 2) return {integer("channels")};
      return {integer("channels"), integer("kernel_size", 0), integer("kernel_size", 1)};
    case OpType::linear:
      if (slot >= kInputScale) return {1};
      if (slot != kWeight) return {integer("out_features")};
      return {integer("out_features"), integer("in_features")};
    case OpType::group_norm: return {integer("num_channels")};
    case OpType::layer_norm: return {integer("normalized_shape")};
    case OpType::embedding:
      if (slot >= kWeightScale) return {integer(slot == kWeightScale ? "num_embeddings" : "max_position_embeddings")};
      return {integer(slot == kWeight ? "num_embeddings" : "max_position_embeddings"), integer("embedding_dim")};
    default: throw fail(MDRT_ERROR_INTERNAL, "%s has no weights", op_row(node.op).name);
  }
}

Shape output_shape(const Node& node, const std::vector<const Shape*>& inputs, mdrt_status status) {
  Shape out = ShapeRule(node, inputs, status).output();
  int64_t elements = 1;
  for (const int64_t size : out) {
    if (size > kMaxDimension)
      throw Error(status, "node '" + node.name + "': a dimension of " + std::to_string(size) + " exceeds 2^31 - 1");
    if (size != 0 && elements > kMaxElements / size)
      throw Error(status, "node '" + node.name + "': the output has more than 2^40 elements");
    if (size != 0) elements *= size;
  }
  return out;
}

int64_t node_macs(const Graph& graph, const Node& node, const std::vector<Shape>& shapes, const Shape& output) {
  static_cast<void>(graph);
  const auto elements = [](const Shape& shape) { return known_product(shape.data(), shape.data() + shape.size()); };
  switch (node.op) {
    case OpType::conv2d:
      return checked_mul(elements(output), attribute_int(node, "in_channels") * attribute_int(node, "kernel_size", 0) *
                                               attribute_int(node, "kernel_size", 1));
    case OpType::depthwise_conv2d:
      return checked_mul(elements(output), attribute_int(node, "kernel_size", 0) * attribute_int(node, "kernel_size", 1));
    case OpType::linear: return checked_mul(elements(output), attribute_int(node, "in_features"));
    case OpType::attention:
      return checked_mul(elements(output), 2 * tokens(shapes[static_cast<size_t>(node.inputs[1])]));
    default: return 0;
  }
}

std::string op_table_json() {
  static const char* const kInputKinds[] = {"activation", "optional_activation", "many_activations", "weight", "optional_weight"};
  std::string text = "[";
  char buffer[160];
  for (const OpRow& row : table()) {
    text += std::string(text.size() > 1 ? ", " : "") + "{\"name\": \"" + row.name + "\", \"inputs\": [";
    for (const OpInput& input : row.inputs) {
      const bool is_weight = input.kind == InputKind::weight || input.kind == InputKind::optional_weight;
      snprintf(buffer, sizeof buffer, "%s{\"name\": \"%s\", \"kind\": \"%s\"", &input == row.inputs.data() ? "" : ", ",
               input.name, kInputKinds[static_cast<int>(input.kind)]);
      text += buffer;
      if (is_weight) {
        text += std::string(", \"weight_kind\": \"") + weight_kind_name(input.weight_kind) + "\", \"is_integer\": ";
        text += input.is_integer ? "true" : "false";
      }
      text += "}";
    }
    text += "], \"attributes\": [";
    for (const OpAttribute& attribute : row.attributes) {
      text += std::string(&attribute == row.attributes.data() ? "" : ", ") + "{\"name\": \"" + attribute.name + "\", ";
      if (attribute.type == AttributeType::word) {
        text += "\"type\": \"word\", \"words\": [";
        for (size_t i = 0; i < attribute.words.size(); ++i) text += std::string(i ? ", \"" : "\"") + attribute.words[i] + "\"";
        text += "]}";
      } else {
        const char* type = attribute.type == AttributeType::integers ? "integers" : "real";
        snprintf(buffer, sizeof buffer, "\"type\": \"%s\", \"count\": %d, \"min\": %.17g, \"max\": %.17g}", type,
                 attribute.count, attribute.min, attribute.max);
        text += buffer;
      }
    }
    text += "]}";
  }
  return text + "]";
}

}  // namespace mdrt
