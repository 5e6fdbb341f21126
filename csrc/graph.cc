#include "graph.h"

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

}  // namespace mdrt
