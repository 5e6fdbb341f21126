// The plain graph in memory: semantic ops only, free of size, batch, threads, memory offsets and kernel names.
//
// Values are numbered: inputs first, then weights, then one value per node in order. A node may only use values
// with a smaller number, so a graph is acyclic by construction.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace mdrt {

int64_t dtype_bytes(DType dtype);       // bytes of one element
const char* dtype_name(DType dtype);    // "fp32", ...

// How a weight lies in the file (docs/format.md).
enum class WeightKind : uint8_t { panel, vector, table, depthwise };

enum class OpType : uint8_t {
#define MDRT_OP(name, inputs, attributes) name,
#include "ops.def"
#undef MDRT_OP
};
constexpr int kOpCount = 0
#define MDRT_OP(name, inputs, attributes) +1
#include "ops.def"
#undef MDRT_OP
    ;

// One attribute: integers (1, 2 or 4), a real number, or the index of a word in the attribute's list of words.
struct AttributeValue {
  std::array<int64_t, 4> integers{};
  double real = 0;
};

struct Node {
  OpType op;
  std::string name;
  std::vector<int32_t> inputs;              // value numbers; absent trailing optional inputs are left out
  std::vector<AttributeValue> attributes;   // in the order of the op's row in ops.def
};

// A dimension of a graph input: a number, or a symbol that is bound at run time ("batch", "height", ...).
struct Dimension {
  int64_t size = 0;     // 0 when symbolic
  std::string symbol;   // empty when fixed
};

struct GraphInput {
  std::string name;
  DType dtype;          // fp32 or int32
  std::vector<Dimension> shape;
};

// A stored tensor, mapped from the file and never copied.
struct Weight {
  std::string name;               // without the component's prefix
  DType dtype;                    // fp32, fp16, int8, or int32 for sums and zero points
  std::vector<int64_t> shape;     // as stored
  const std::byte* data = nullptr;   // 64-byte aligned
  int64_t size_bytes = 0;
};

struct GraphOutput {
  std::string name;
  int32_t value;
};

struct Graph {
  std::string name;    // the component's name
  std::vector<GraphInput> inputs;
  std::vector<Weight> weights;
  std::vector<Node> nodes;
  std::vector<GraphOutput> outputs;

  int32_t weight_base() const { return static_cast<int32_t>(inputs.size()); }
  int32_t node_base() const { return weight_base() + static_cast<int32_t>(weights.size()); }
  int32_t value_count() const { return node_base() + static_cast<int32_t>(nodes.size()); }
  bool is_weight(int32_t value) const { return value >= weight_base() && value < node_base(); }
  const std::string& value_name(int32_t value) const;
};

// Names of values and tensors: 1 to 256 bytes of [A-Za-z0-9._/-], no part empty, "." or "..".
bool is_value_name(std::string_view name);
// Names of components and symbols: [a-z_]{1,32}.
bool is_word(std::string_view text);

}  // namespace mdrt
