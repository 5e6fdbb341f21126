// int8 layers, quantisation included, on every ISA that this CPU runs: over random shapes around those of tiles all give the same
// bytes, and nothing is touched outside of operands, which lie flush against unreadable pages.
//
//   int8_bytes [--count N] [--seed S]
//
// N products, N convolutions and N convolutions that Winograd's algorithm can do are compared. The checksum printed at the end is
// that of all results: for the same options it is the same on every processor.
#include <algorithm>
#include <cstdio>

#include "crc32c.h"
#include "guarded.h"
#include "lower.h"
#include "registry.h"

using namespace mdrt;

namespace {

struct Layer {
  QuantizeArgs quantize = {};
  GemmArgs gemm = {};
  int64_t output_bytes = 0;
  bool same_bytes = false;      // nothing before the quantisation or behind the product whose steps may be contracted
};

// The shape of a convolution (or of a linear layer, which is one of 1x1) and what its loader reads.
void choose_input(Arguments& memory, bool same_bytes, GemmArgs* g) {
  g->batch = pick(1, 2);
  g->in_h = pick(1, 18);
  g->in_w = pick(1, 18);
  const bool resized = pick(0, 4) == 0;
  g->view_h = resized ? g->in_h * 2 - pick(0, g->in_h > 1) : g->in_h;
  g->view_w = resized ? g->in_w * 2 - pick(0, g->in_w > 1) : g->in_w;
  const bool depthwise = !same_bytes && pick(0, 2) == 0;
  g->kernel_h = g->kernel_w = depthwise || coin() ? 3 : 1;
  g->stride_h = g->stride_w = g->kernel_h == 3 && pick(0, 3) == 0 ? 2 : 1;
  g->pad_top = g->pad_left = g->kernel_h / 2;
  g->out_h = (g->view_h + 2 * g->pad_top - g->kernel_h) / g->stride_h + 1;
  g->out_w = (g->view_w + 2 * g->pad_left - g->kernel_w) / g->stride_w + 1;
  g->num_sources = pick(0, 3) == 0 ? 2 : 1;
  const int64_t most = g->in_h * g->in_w < 40 ? 1100 : 150;
  for (int s = 0; s < g->num_sources; ++s) {
    const int64_t channels = s + 1 < g->num_sources ? pick(1, 5) * kPanel : pick(1, most);
    g->sources[s] = memory.view(g->batch * g->in_h * g->in_w, channels, any_dtype());
    g->k_channels += g->sources[s].channels;
  }
  if (!same_bytes && coin()) {
    g->norm = memory.floats(g->batch * 2 * g->k_channels);
    g->input_activation = Activation::silu;
  }
  if (depthwise) {
    g->depthwise = memory.floats(g->kernel_h * g->kernel_w * g->k_channels);
    if (coin()) g->depthwise_bias = memory.floats(g->k_channels);
  }
}

// Weights of [-127, 127], often at the ends, as (panel, K / 4, 16, 4), and the sums of their columns.
void choose_weights(Arguments& memory, GemmArgs* g) {
  const int64_t depth = g->kernel_h * g->kernel_w * g->k_channels;
  int8_t* weights = reinterpret_cast<int8_t*>(memory.bytes(g->panels * kPanel * depth));
  int32_t* sums = reinterpret_cast<int32_t*>(memory.bytes(g->panels * kPanel * 4));
  float* scales = reinterpret_cast<float*>(memory.bytes(g->panels * kPanel * 4));
  const bool extreme = pick(0, 3) == 0;
  for (int64_t i = 0; i < g->panels * kPanel * depth; ++i) {
    weights[i] = static_cast<int8_t>(extreme ? (coin() ? 127 : -127) : pick(-127, 127));
    sums[i / (depth * kPanel) * kPanel + i % 64 / 4] += weights[i];
  }
  for (int64_t i = 0; i < g->panels * kPanel; ++i) scales[i] = static_cast<float>(pick(1, 1000)) * 1e-4f;
  g->weight = weights;
  g->weight_dtype = DType::int8;
  g->weight_sum = sums;
  g->weight_scale = scales;
}

void choose_output(Arguments& memory, Layer* layer) {
  GemmArgs& g = layer->gemm;
  const int64_t channels = (g.gated ? g.panels / 2 : g.panels) * kPanel, pixels = g.batch * g.out_h * g.out_w;
  g.bias = memory.floats(g.panels * kPanel);
  if (!g.gated && coin()) {
    g.image_bias_stride = channels;
    g.image_bias = memory.floats(g.batch * channels);
  }
  g.activation = g.gated || !layer->same_bytes ? Activation::gelu : Activation::none;
  g.output = memory.view(pixels, channels, any_dtype());
  layer->output_bytes = ((pixels - 1) * g.output.stride + channels) * size_of(g.output.dtype);
  if (coin()) g.residual = memory.view(pixels, channels, any_dtype());
}

Layer choose_layer(Arguments& memory) {
  Layer layer;
  QuantizeArgs& q = layer.quantize;
  layer.same_bytes = pick(0, 2) > 0;
  choose_input(memory, layer.same_bytes, &q.layer);
  GemmArgs& g = layer.gemm;
  g = q.layer;
  g.num_sources = 1;
  g.norm = nullptr;
  g.input_activation = Activation::none;
  if (g.depthwise) {
    g.depthwise = g.depthwise_bias = nullptr;
    g.in_h = g.view_h = g.out_h;
    g.in_w = g.view_w = g.out_w;
    g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = 1;
    g.pad_top = g.pad_left = 0;
  }
  q.pixels = g.batch * g.in_h * g.in_w;
  q.block_pixels = pick(1, 50);
  q.not_finite = reinterpret_cast<int32_t*>(memory.bytes(4));
  q.output = g.sources[0] = memory.quantized_view(q.pixels, g.k_channels);
  const bool one_pixel = g.kernel_h == 1 && g.view_h == g.in_h && g.view_w == g.in_w;
  if (one_pixel && coin()) {
    g.pixel_scale = q.pixel_scale = memory.floats(q.pixels);
  } else {
    float* scale = reinterpret_cast<float*>(memory.bytes(4));
    int32_t* zero_point = reinterpret_cast<int32_t*>(memory.bytes(4));
    *scale = static_cast<float>(pick(1, 20)) * 0.001f;
    *zero_point = static_cast<int32_t>(pick(-128, 127));
    g.input_scale = q.input_scale = scale;
    g.input_zero_point = q.input_zero_point = zero_point;
  }
  g.gated = !layer.same_bytes && coin();
  g.panels = pick(1, 9) * (g.gated ? 2 : 1);
  choose_weights(memory, &g);
  choose_output(memory, &layer);
  return layer;
}

uint32_t checksum_of(const Layer& layer) { return crc32c(0, layer.gemm.output.data, static_cast<size_t>(layer.output_bytes)); }

bool has_winograd(const GemmArgs& g) { return !g.pixel_scale && can_use_winograd_int8(g); }

// Whether Winograd's algorithm gives the bytes that are in the output already.
bool winograd_agrees(const KernelTable& k, Layer layer, Arguments& memory, bool at_end) {
  GemmArgs& g = layer.gemm;
  const uint32_t expected = checksum_of(layer);
  choose_winograd_int8_blocks(&g);
  g.output_sums = memory.output_sums(g);
  run(k.winograd_int8, g, g.batch * g.blocks_y * g.blocks_x * g.panel_blocks, k.winograd_int8_scratch_bytes(&g), at_end);
  return checksum_of(layer) == expected;
}

// Runs the layer and returns the checksum of its output.
uint32_t run_layer(const KernelTable& k, Layer layer, Arguments& memory, bool at_end) {
  QuantizeArgs& q = layer.quantize;
  const bool may_widen = k.tile.int8_bytes > 1 && !q.layer.depthwise && is_plain_product(layer.gemm);
  if (may_widen && q.pixels % 2 == 0) {
    q.output = layer.gemm.sources[0] = memory.widened_view(q.pixels, layer.gemm.k_channels, k.tile);
  }
  int64_t tasks = (q.pixels + q.block_pixels - 1) / q.block_pixels;
  if (q.layer.depthwise) {
    q.layer.panels = 1;
    choose_blocks(&q.layer, k.tile, true);
    tasks = q.layer.batch * q.layer.blocks_y * q.layer.blocks_x;
  }
  run(k.quantize, q, tasks, k.quantize_scratch_bytes(&q), at_end);
  GemmArgs& g = layer.gemm;
  choose_int8_blocks(&g, k.tile, true);
  g.output_sums = memory.output_sums(g);
  run(k.gemm_int8, g, g.batch * g.blocks_y * g.blocks_x * g.panel_blocks, k.gemm_int8_scratch_bytes(&g), at_end);
  return checksum_of(layer);
}

// Layers so far, and how many of them were compared between all ISAs, or between the two algorithms on each.
struct Counts {
  int64_t layers = 0, products = 0, convolutions = 0, winograd = 0, wrong = 0;
  uint32_t checksum = 0;
};

void test_layer(Counts* counts) {
  const int64_t number = counts->layers++;
  const bool at_end = number % 2 == 0;
  const Isa& first = compiled_isas().front();
  Arguments memory(at_end);
  const Layer layer = choose_layer(memory);
  const bool winograd = has_winograd(layer.gemm);
  const uint32_t expected = run_layer(*first.kernels, layer, memory, at_end);
  for (const Isa& isa : compiled_isas()) {
    if (!is_usable(isa)) continue;
    if (&isa != &first && run_layer(*isa.kernels, layer, memory, at_end) != expected && layer.same_bytes) {
      printf("int8_bytes: layer %lld: %s differs from %s\n", static_cast<long long>(number), isa.name, first.name);
      ++counts->wrong;
    }
    if (winograd && !winograd_agrees(*isa.kernels, layer, memory, at_end)) {
      printf("int8_bytes: layer %lld: on %s Winograd's algorithm differs\n", static_cast<long long>(number), isa.name);
      ++counts->wrong;
    }
  }
  counts->winograd += winograd;
  if (!layer.same_bytes) return;
  ++(layer.gemm.kernel_h == 1 ? counts->products : counts->convolutions);
  counts->checksum = crc32c(counts->checksum, &expected, sizeof expected);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t count = read_options(argc, argv, 100);
  for (const Isa& isa : compiled_isas()) {
    if (!is_usable(isa)) printf("int8_bytes: %s not executed: this CPU lacks one of: %s\n", isa.name, isa.features);
  }
  Counts counts;
  while (std::min({counts.products, counts.convolutions, counts.winograd}) < count) test_layer(&counts);
  printf("int8_bytes: %lld layers; compared: %lld products, %lld convolutions, %lld of Winograd's; %lld differ, checksum %08x\n",
         static_cast<long long>(counts.layers), static_cast<long long>(counts.products), static_cast<long long>(counts.convolutions),
         static_cast<long long>(counts.winograd), static_cast<long long>(counts.wrong), static_cast<unsigned>(counts.checksum));
  return counts.wrong ? 1 : 0;
}
