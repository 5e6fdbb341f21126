// Every kernel of every ISA that this CPU runs, over random shapes, with each operand flush against an unreadable page:
// a read or write one byte outside ends the program. Address sanitizers do not see such accesses of vector code.
//
//   guard_pages [--count N] [--seed S]
#include <cstdio>

#include "base/cpu.h"
#include "guarded.h"
#include "lower.h"
#include "registry.h"

using namespace mdrt;

namespace {

void test_gemm(const KernelTable& k, bool at_end) {
  Arguments memory(at_end);
  GemmArgs g = {};
  g.batch = pick(1, 2);
  g.in_h = pick(1, 20);
  g.in_w = pick(1, 20);
  const bool resized = pick(0, 3) == 0;
  g.view_h = resized ? g.in_h * 2 - pick(0, g.in_h > 1) : g.in_h;
  g.view_w = resized ? g.in_w * 2 - pick(0, g.in_w > 1) : g.in_w;
  const bool depthwise = pick(0, 3) == 0;
  g.kernel_h = g.kernel_w = depthwise || coin() ? 3 : 1;
  g.stride_h = g.stride_w = g.kernel_h == 3 ? pick(1, 2) : 1;
  g.pad_top = g.pad_left = g.kernel_h / 2;
  g.out_h = (g.view_h + 2 * g.pad_top - g.kernel_h) / g.stride_h + 1;
  g.out_w = (g.view_w + 2 * g.pad_left - g.kernel_w) / g.stride_w + 1;
  g.num_sources = coin() ? 2 : 1;
  for (int s = 0; s < g.num_sources; ++s) {
    g.sources[s] = memory.view(g.batch * g.in_h * g.in_w, s + 1 < g.num_sources ? pick(1, 5) * kPanel : pick(1, 100), any_dtype());
    g.k_channels += g.sources[s].channels;
  }
  if (coin()) {
    g.norm = memory.floats(g.batch * 2 * g.k_channels);
    g.input_activation = Activation::silu;
  }
  const int64_t taps = depthwise ? 1 : g.kernel_h * g.kernel_w;
  if (depthwise) {
    g.depthwise = memory.floats(g.kernel_h * g.kernel_w * g.k_channels);
    if (coin()) g.depthwise_bias = memory.floats(g.k_channels);
  }
  g.gated = pick(0, 3) == 0;
  g.panels = pick(1, 9) * (g.gated ? 2 : 1);
  g.weight_dtype = pick(0, 2) == 0 ? DType::int8 : any_dtype();
  const int64_t weights = g.panels * kPanel * taps * g.k_channels;
  switch (g.weight_dtype) {
    case DType::fp32: g.weight = memory.floats(weights); break;
    case DType::int8: g.weight = memory.bytes(weights), g.weight_scale = memory.floats(g.panels * kPanel); break;
    default: g.weight = memory.bytes(weights * 2);
  }
  if (coin()) g.bias = memory.floats(g.panels * kPanel);
  const int64_t out_channels = (g.gated ? g.panels / 2 : g.panels) * kPanel, pixels = g.batch * g.out_h * g.out_w;
  if (!g.gated && coin()) {
    g.image_bias_stride = out_channels;
    g.image_bias = memory.floats(g.batch * out_channels);
  }
  g.activation = g.gated || coin() ? Activation::gelu : Activation::none;
  g.output = memory.view(pixels, out_channels, any_dtype());
  if (coin()) g.residual = memory.view(pixels, out_channels, any_dtype());
  const bool is_normalised = coin();
  choose_blocks(&g, k.tile, g.norm || g.image_bias || is_normalised);
  if (is_normalised) g.output_sums = memory.output_sums(g);
  run(k.gemm, g, g.batch * g.blocks_y * g.blocks_x * g.panel_blocks, k.gemm_scratch_bytes(&g), at_end);
  g.columns = pick(1, 3) == 1 ? out_channels : pick(1, 4);
  if (narrow_pays(g, k.tile)) {
    g.output_sums = nullptr;
    choose_narrow_blocks(&g, k.tile);
    run(k.narrow, g, g.batch * g.blocks_y * g.blocks_x * g.panel_blocks, k.narrow_scratch_bytes(&g), at_end);
  }
  if (g.gated || !can_use_winograd(g)) return;
  choose_winograd_blocks(&g, k.tile);
  if (is_normalised) g.output_sums = memory.output_sums(g);
  run(k.winograd, g, g.batch * g.blocks_y * g.blocks_x * g.panel_blocks, k.winograd_scratch_bytes(&g), at_end);
}

void test_attention(const KernelTable& k, bool at_end) {
  Arguments memory(at_end);
  AttentionArgs a = {};
  a.batch = pick(1, 2);
  a.heads = pick(1, 4);
  a.head_dim = pick(1, 70);
  a.queries = pick(1, 150);
  a.is_causal = pick(0, 3) == 0;
  a.keys = a.is_causal ? a.queries : pick(1, 300);
  a.fn = coin() ? AttentionFn::softmax : AttentionFn::relu;
  const int64_t width = a.heads * a.head_dim;
  a.q = memory.view(a.batch * a.queries, width, any_dtype());
  a.k = memory.view(a.batch * a.keys, width, any_dtype());
  a.v = coin() ? a.k : memory.view(a.batch * a.keys, width, a.k.dtype);
  a.output = memory.view(a.batch * a.queries, width, any_dtype());
  a.block_queries = a.queries < 64 ? a.queries : 64;
  a.query_blocks = (a.queries + a.block_queries - 1) / a.block_queries;
  run(k.attention, a, a.batch * a.heads * a.query_blocks, k.attention_scratch_bytes(&a), at_end);
}

void test_norms(const KernelTable& k, bool at_end) {
  Arguments memory(at_end);
  GroupNormFinishArgs s = {};
  const int64_t batch = pick(1, 2), pixels = pick(1, 300);
  s.num_sources = coin() ? 2 : 1;
  s.groups = pick(1, 4);
  const int64_t first = s.num_sources == 2 ? kPanel * s.groups : 0, last = s.groups * pick(1, 20);
  s.channels = first + last;
  s.k_channels = first + padded(last);
  NormApplyArgs n = {};
  n.num_sources = s.num_sources;
  n.batch = batch;
  n.pixels = pixels;
  n.block_pixels = 64;
  n.blocks = (pixels + 63) / 64;
  for (int i = 0; i < s.num_sources; ++i) {
    GroupNormSumsArgs a = {};
    a.input = n.sources[i] = memory.view(batch * pixels, i + 1 < s.num_sources ? first : last, any_dtype());
    a.pixels = pixels;
    a.block_pixels = n.block_pixels;
    a.blocks = n.blocks;
    a.sums = memory.floats(batch * a.blocks * sums_row(a.input.channels));
    run(k.group_norm_sums, a, batch * a.blocks, 0, at_end);
    s.sources[i] = {a.sums, a.blocks, a.input.channels};
  }
  s.eps = 1e-5;
  s.weight = memory.floats(s.k_channels);
  s.bias = memory.floats(s.k_channels);
  s.norm = memory.floats(batch * 2 * s.k_channels);
  run(k.group_norm_finish, s, batch * s.groups, 0, at_end);
  n.norm = s.norm;
  n.activation = Activation::silu;
  n.output = memory.view(batch * pixels, s.channels, any_dtype());
  run(k.norm_apply, n, n.batch * n.blocks, 0, at_end);
  LayerNormArgs l = {};
  l.pixels = pick(1, 40);
  l.block_pixels = 16;
  l.size = pick(1, 200);
  l.eps = 1e-5f;
  l.input = memory.view(l.pixels, l.size, any_dtype());
  l.output = memory.view(l.pixels, l.size, any_dtype());
  l.weight = memory.floats(padded(l.size));
  l.bias = memory.floats(padded(l.size));
  run(k.layer_norm, l, (l.pixels + 15) / 16, k.layer_norm_scratch_bytes(&l), at_end);
  l.output = memory.quantized_view(l.pixels, l.size);
  l.pixel_scale = memory.floats(l.pixels);
  l.not_finite = reinterpret_cast<int32_t*>(memory.bytes(4));
  run(k.layer_norm, l, (l.pixels + 15) / 16, k.layer_norm_scratch_bytes(&l), at_end);
}

void test_elementwise(const KernelTable& k, bool at_end) {
  Arguments memory(at_end);
  PointwiseArgs p = {};
  p.kind = static_cast<PointwiseKind>(pick(0, 3));
  p.batch = pick(1, 2);
  p.pixels = pick(1, 100);
  p.block_pixels = 64;
  p.blocks = (p.pixels + 63) / 64;
  p.channels = pick(1, 70);
  p.gate_offset = p.channels;
  p.activation = Activation::gelu;
  p.a = memory.view(p.batch * p.pixels, p.kind == PointwiseKind::gate ? 2 * p.channels : p.channels, any_dtype());
  p.b = memory.view(p.kind == PointwiseKind::add_image ? p.batch : p.batch * p.pixels, p.channels, any_dtype());
  p.output = memory.view(p.batch * p.pixels, p.channels, any_dtype());
  run(k.pointwise, p, p.batch * p.blocks, 0, at_end);

  CopyArgs c = {};
  c.batch = pick(1, 2);
  c.in_h = pick(1, 9);
  c.in_w = pick(1, 9);
  c.out_h = pick(1, 20);
  c.out_w = pick(1, 20);
  c.channels = pick(1, 40);
  c.output_channel = pick(0, 20);
  c.last = true;
  c.input = memory.view(c.batch * c.in_h * c.in_w, c.channels, any_dtype());
  c.output = memory.view(c.batch * c.out_h * c.out_w, c.output_channel + c.channels, any_dtype());
  run(k.copy, c, c.batch * c.out_h, 0, at_end);

  DepthwiseArgs d = {};
  d.batch = pick(1, 2);
  d.in_h = pick(1, 12);
  d.in_w = pick(1, 12);
  d.kernel_h = d.kernel_w = 3;
  d.stride_h = d.stride_w = pick(1, 2);
  d.pad_top = d.pad_left = 1;
  d.out_h = (d.in_h - 1) / d.stride_h + 1;
  d.out_w = (d.in_w - 1) / d.stride_w + 1;
  const int64_t channels = pick(1, 70);
  d.input = memory.view(d.batch * d.in_h * d.in_w, channels, any_dtype());
  d.output = memory.view(d.batch * d.out_h * d.out_w, channels, any_dtype());
  d.weight = memory.floats(9 * padded(channels));
  if (coin()) d.bias = memory.floats(padded(channels));
  run(k.depthwise, d, d.batch * d.out_h, 0, at_end);

  EmbeddingArgs e = {};
  e.batch = pick(1, 2);
  e.length = pick(1, 9);
  e.size = pick(1, 70);
  e.table_stride = e.positions_stride = (e.size + 31) / 32 * 32;
  int32_t* ids = reinterpret_cast<int32_t*>(memory.bytes(e.batch * e.length * 4));
  for (int64_t i = 0; i < e.batch * e.length; ++i) ids[i] = static_cast<int32_t>(pick(0, 10));
  e.ids = ids;
  e.table_dtype = any_dtype();
  e.positions_dtype = any_dtype();
  e.table = memory.bytes(11 * e.table_stride * size_of(e.table_dtype));
  e.positions = memory.bytes(e.length * e.positions_stride * size_of(e.positions_dtype));
  e.output = memory.view(e.batch * e.length, e.size, any_dtype());
  run(k.embedding, e, e.batch * e.length, 0, at_end);

  ConvertArgs v = {};
  v.pixels = pick(1, 300);
  v.channels = pick(1, 70);
  v.view = memory.view(v.pixels, v.channels, any_dtype());
  float* dense = memory.floats(v.pixels * v.channels);
  v.dense_in = dense;
  run(k.convert, v, (v.pixels + 255) / 256, 0, at_end);
  v.dense_in = nullptr;
  v.dense_out = dense;
  run(k.convert, v, (v.pixels + 255) / 256, 0, at_end);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t count = read_options(argc, argv, 300);
  for (const Isa& isa : compiled_isas()) {
    if (!is_usable(isa)) {
      printf("guard_pages: %s not executed: this CPU lacks one of: %s\n", isa.name, isa.features);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const bool at_end = i % 2 == 0;
      test_gemm(*isa.kernels, at_end);
      test_attention(*isa.kernels, at_end);
      test_norms(*isa.kernels, at_end);
      test_elementwise(*isa.kernels, at_end);
    }
    printf("guard_pages: %s, %lld rounds, no fault\n", isa.name, static_cast<long long>(count));
    fflush(stdout);
  }
  return 0;
}
