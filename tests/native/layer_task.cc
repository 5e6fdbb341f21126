// Runs tasks of one int8 layer, so that qemu can count what a multiply-add takes (docs/performance.md).
//
//   layer_task [--layer N] [--tasks N] [--isa NAME]
//
// Layers: 0: linear 1024 to 6144 on 256 tokens; 1: 3x3 320 to 320 at 64x64; 2: 3x3 640 to 640 at 64x64.
#include <cstdio>

#include "guarded.h"
#include "lower.h"
#include "registry.h"

using namespace mdrt;

namespace {

struct Shape {
  int64_t size, channels, columns, kernel;    // size x size pixels
};
constexpr Shape kShapes[] = {{16, 1024, 6144, 1}, {64, 320, 320, 3}, {64, 640, 640, 3}};

GemmArgs make_layer(Arguments& memory, const Shape& shape, const TileInfo& tile) {
  GemmArgs g = {};
  g.batch = 1;
  g.in_h = g.in_w = g.view_h = g.view_w = g.out_h = g.out_w = shape.size;
  g.kernel_h = g.kernel_w = shape.kernel;
  g.stride_h = g.stride_w = 1;
  g.pad_top = g.pad_left = shape.kernel / 2;
  g.num_sources = 1;
  g.k_channels = shape.channels;
  const int64_t pixels = shape.size * shape.size;
  g.sources[0] = memory.quantized_view(pixels, shape.channels);
  g.panels = shape.columns / kPanel;
  g.weight = memory.bytes(g.panels * kPanel * shape.kernel * shape.kernel * shape.channels);
  g.weight_dtype = DType::int8;
  g.weight_scale = memory.floats(shape.columns);
  g.weight_sum = reinterpret_cast<int32_t*>(memory.bytes(shape.columns * 4));
  g.bias = memory.floats(shape.columns);
  g.input_scale = memory.floats(1);
  g.input_zero_point = reinterpret_cast<int32_t*>(memory.bytes(4));
  g.output = {memory.bytes(pixels * shape.columns * 2), DType::fp16, shape.columns, shape.columns};
  choose_int8_blocks(&g, tile, false);
  return g;
}

}  // namespace

int main(int argc, char** argv) {
  size_t layer = 0;
  int64_t tasks = 1;
  std::string name;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--layer") layer = static_cast<size_t>(atoll(argv[i + 1]));
    if (std::string(argv[i]) == "--tasks") tasks = atoll(argv[i + 1]);
    if (std::string(argv[i]) == "--isa") name = argv[i + 1];
  }
  if (layer >= sizeof kShapes / sizeof *kShapes) {
    fprintf(stderr, "layer_task: no layer %zu\n", layer);
    return 2;
  }
  const Isa& isa = choose_isa(name);
  Arguments memory(true);
  const GemmArgs g = make_layer(memory, kShapes[layer], isa.kernels->tile);
  run(isa.kernels->gemm_int8, g, tasks, isa.kernels->gemm_int8_scratch_bytes(&g), true);
  const int64_t macs = g.block_h * g.block_w * g.task_panels * kPanel * g.kernel_h * g.kernel_w * g.k_channels;
  printf("layer_task: %s, layer %zu: %lld tasks of %lld multiply-adds\n", isa.name, layer, static_cast<long long>(tasks),
         static_cast<long long>(macs));
  return 0;
}
