// Enumerations shared by the graph and the kernels. No std:: here: ISA units include this.
#pragma once

#include <stdint.h>

namespace mdrt {

enum class DType : uint8_t { fp32, fp16, int8, int32, uint8, fp64 };
enum class Activation : uint8_t { none, silu, gelu, quick_gelu };
enum class AttentionFn : uint8_t { softmax, relu };

// Which 3x3 convolutions are computed by Winograd's F(4x4, 3x3): quicker, and less exact.
enum class Winograd : uint8_t { where_it_pays, wherever_possible, never };

// Columns of a weight panel; activations are padded to a multiple of it in their channels.
constexpr int64_t kPanel = 16;

}  // namespace mdrt
