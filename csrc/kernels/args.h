// What kernels are called with. Plain structs: the same for every ISA, filled once by the planner.
//
// An activation is `pixels` rows of `channels` elements, `stride` elements apart; channels are padded to kPanel with zeros
// (gaps between channels and stride may hold anything). A kernel is called once per task, from any thread, with
// `scratch` of its own; no task reads what another task of the same step writes.
#pragma once

#include "base/types.h"

namespace mdrt {

struct ActivationView {
  void* data;
  DType dtype;          // fp32 or fp16; int8 between `quantize` (or `layer_norm`) and `gemm_int8`
  int64_t channels;     // padded
  int64_t stride;       // elements between pixels
  bool widened = false; // int8: pixels lie as the tile of `gemm_int8` reads them, if that takes more than their bytes (TileInfo)
};

// Floats of a row of sums (kernels/channel_sums.h): (3, channels), then how many pixels they are of, in kPanel floats.
static inline int64_t sums_row(int64_t channels) { return 3 * channels + kPanel; }

// Convolution or linear as implicit GEMM; see kernels/gemm.h.
struct GemmArgs {
  // Input: `batch` images of in_h * in_w pixels, seen as resized (nearest) to view_h * view_w; channels of up to two sources
  // follow each other.
  ActivationView sources[2];
  int num_sources;
  int64_t batch, in_h, in_w, view_h, view_w;
  const float* norm;        // (batch, 2, k_channels): scale, then shift, applied before `input_activation`; or null
  Activation input_activation;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  const float* depthwise;   // (kernel_h * kernel_w, k_channels): then the GEMM is 1x1 on the depthwise result; or null
  const float* depthwise_bias;
  int64_t k_channels;       // padded channels of all sources
  // Weights: panels of kPanel columns, (panel, kernel_h * kernel_w * k_channels, kPanel).
  const void* weight;
  DType weight_dtype;
  int64_t panels;
  int64_t columns;          // of the output that are no padding
  const float* bias;        // (panels * kPanel), or null
  const float* weight_scale;        // (panels * kPanel) of an int8 weight
  // `gemm_int8`, whose only source is int8: the input's scale is one number per pixel, or one for all with a zero point, which
  // stands where the convolution's padding is.
  const int32_t* weight_sum;        // (panels * kPanel)
  const float* pixel_scale;         // (input pixels), or null
  const float* input_scale;         // (1), if pixel_scale is null
  const int32_t* input_zero_point;  // (1), if pixel_scale is null
  // Output: batch images of out_h * out_w pixels.
  int64_t out_h, out_w;
  const float* image_bias;  // (batch, image_bias_stride) added per image, or null
  int64_t image_bias_stride;
  ActivationView residual;  // data null: none; may be the output itself
  Activation activation;    // after bias, before the residual; with `gated`: of the gate
  bool gated;               // output = first half of the columns * activation(second half)
  ActivationView output;
  float* output_sums;           // (blocks of pixels, see kernels/channel_sums.h) of the output, written too; or null
  // Blocking, the same for any thread count.
  bool plain_product;           // no output pixel reads more than its own input pixel
  int64_t block_h, block_w;     // output pixels of a task
  int64_t blocks_y, blocks_x;
  int64_t task_panels;          // panels of output of a task (gated: of each half)
  int64_t panel_blocks;
  int64_t k_block;              // channels per pass
  int64_t tasks_ahead;          // `gemm_int8`: a thread's next task is probably so many after its last; only decides what is fetched early
};

// The input of an int8 layer: what the loader of `layer` makes of its sources, quantised. One source of bytes replaces all.
struct QuantizeArgs {
  GemmArgs layer;               // its input side; with `depthwise` also geometry and blocks of the output
  int64_t pixels, block_pixels; // without `depthwise`: all pixels of the batch, and those of a task
  ActivationView output;        // int8; zeros from the last channel to the next multiple of 64
  float* pixel_scale;           // (output pixels) written; null: input_scale and input_zero_point are given
  const float* input_scale;
  const int32_t* input_zero_point;
  int32_t* not_finite;          // becomes 1 when a value is NaN or infinite
};

struct DepthwiseArgs {
  ActivationView input, output;
  int64_t batch, in_h, in_w, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  const float* weight;      // (kernel_h * kernel_w, channels)
  const float* bias;        // or null
};

// Sums over blocks of pixels (kernels/channel_sums.h), of a map whose producer did not make them.
struct GroupNormSumsArgs {
  ActivationView input;
  int64_t pixels, block_pixels, blocks;   // per image
  float* sums;              // (batch * blocks rows)
};

// Scale and shift per channel.
struct GroupNormFinishArgs {
  struct Source {
    const float* sums;      // (batch * blocks rows)
    int64_t blocks;         // per image
    int64_t channels;       // padded
  };
  Source sources[2];
  int num_sources;
  int64_t k_channels;       // padded, of all sources
  int64_t channels, groups; // logical
  double eps;
  const float *weight, *bias;
  float* norm;              // (batch, 2, k_channels)
};

// output = activation(input * scale + shift)
struct NormApplyArgs {
  ActivationView sources[2];
  int num_sources;
  int64_t batch, pixels, block_pixels, blocks;
  const float* norm;        // (batch, 2, channels of all sources)
  Activation activation;
  ActivationView output;
};

struct LayerNormArgs {
  ActivationView input, output;
  int64_t pixels, block_pixels;
  int64_t size;             // logical channels
  float eps;
  const float *weight, *bias;
  float* pixel_scale;           // (pixels) written when the output is int8
  int32_t* not_finite;          // as of QuantizeArgs
};

struct AttentionArgs {
  ActivationView q, k, v, output;
  int64_t batch, queries, keys;
  int64_t heads, head_dim;
  AttentionFn fn;
  bool is_causal;
  int64_t block_queries, query_blocks;
};

// output = activation(a) ; a + b ; a * activation(b)
enum class PointwiseKind : uint8_t { activate, add, add_image, gate };
struct PointwiseArgs {
  PointwiseKind kind;
  ActivationView a, b, output;
  int64_t batch, pixels;        // pixels per image
  int64_t block_pixels, blocks; // per image
  int64_t gate_offset;          // gate: first channel of the second half
  int64_t channels;             // logical channels of the output
  Activation activation;
};

// Nearest resize, or a plain copy into a channel range of the output.
struct CopyArgs {
  ActivationView input, output;
  int64_t batch, in_h, in_w, out_h, out_w;
  int64_t channels;             // logical channels to copy
  int64_t output_channel;       // first one written
  bool last;                    // clears the output's channel padding
};

struct EmbeddingArgs {
  const int32_t* ids;           // (batch, length)
  const void *table, *positions;
  DType table_dtype, positions_dtype;
  int64_t table_stride, positions_stride;
  const float *table_scale, *positions_scale;   // (rows), of int8 tables
  int64_t batch, length, size;
  ActivationView output;
};

// Dense fp32 outside <-> padded activation inside.
struct ConvertArgs {
  const float* dense_in;        // or null
  float* dense_out;             // or null
  ActivationView view;
  int64_t pixels, channels;
};

// The most that an instruction set can do (micro/peak.h): multiply-adds, or reading of memory.
struct PeakArgs {
  int64_t rounds;               // of multiply-adds
  int64_t* macs;                // (tasks): how many multiply-adds these were
  const float* memory;          // (tasks, floats)
  int64_t floats;               // a multiple of 128
  double* results;              // (tasks): so that no compiler leaves the work out
};

struct TileInfo {
  int rows, columns;            // MR, NR of the GEMM tile
  int64_t block_pixels;         // output pixels of a task
  int64_t weight_block_bytes;   // of a GEMM tile's weights in one pass: they stay near the core while all rows use them
  int64_t narrow_columns;       // the most that `narrow` makes
  int64_t int8_panel_step;      // panels of an int8 task are a multiple of this
  int64_t int8_task_panels;     // the fewest of an int8 task: more where each task prepares its pixels anew
  int64_t int8_bytes;           // that the int8 tile reads for a byte of a pixel; if 2, whoever writes bytes can write these
  int64_t int8_tail;            // bytes that follow a pixel then
  bool int8_winograd_pays;      // 16-bit products are less than 2.25 times as slow as those of bytes
};

struct KernelTable {
  const char* isa;
  TileInfo tile;
  int64_t (*gemm_scratch_bytes)(const GemmArgs*);
  int64_t (*winograd_scratch_bytes)(const GemmArgs*);
  int64_t (*narrow_scratch_bytes)(const GemmArgs*);
  int64_t (*gemm_int8_scratch_bytes)(const GemmArgs*);
  int64_t (*winograd_int8_scratch_bytes)(const GemmArgs*);
  int64_t (*quantize_scratch_bytes)(const QuantizeArgs*);
  int64_t (*layer_norm_scratch_bytes)(const LayerNormArgs*);
  int64_t (*attention_scratch_bytes)(const AttentionArgs*);
#define MDRT_KERNEL(name, Args) void (*name)(const Args*, int64_t task, void* scratch);
#include "kernels.def"
#undef MDRT_KERNEL
};

}  // namespace mdrt
