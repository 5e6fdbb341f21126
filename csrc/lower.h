// Lowering: fused nodes become kernel calls. Pointers into the arena are filled in once its layout is known.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "fuse.h"
#include "plan.h"
#include "strips.h"

namespace mdrt {

class Lowering {
 public:
  Lowering(const PlanRequest& request, const StripRule& strip_rule, Plan& plan);

  // Steps and buffers of the whole graph.
  void lower();
  // Fills in the pointers; the arena exists now.
  void bind();

 private:
  struct Pointer {
    void** location;
    int32_t buffer;
    int64_t offset;             // bytes
  };

  // A value, or what a layer's loader makes of values, as int8: where its bytes and its pixels' scales lie.
  struct Quantized {
    ValuePlace place;
    int32_t scales = -1;        // buffer; -1: the layer has input_scale and input_zero_point
    bool widened = false;       // as in ActivationView
  };

  // What GroupNorm needs of a value (kernels/channel_sums.h): rows of sums, as many for each image.
  struct ChannelSums {
    int32_t buffer = -1;
    int64_t rows = 0;
  };

  // One of the kernels for convolutions and linear layers.
  struct GemmKernel {
    void (*run)(const GemmArgs*, int64_t task, void* scratch);
    const char* name;
    int64_t (*scratch_bytes)(const GemmArgs*);
  };

  template <class Args>
  KernelStep<Args>& add_step(void (*kernel)(const Args*, int64_t, void*), const char* kernel_name, int32_t value);
  int32_t add_buffer(int64_t size_bytes);
  void use(void* location, int32_t buffer, int64_t offset = 0);   // the step added last reads or writes it
  void use(ActivationView* view, int32_t value, int64_t first_pixel = 0);
  void use(ActivationView* view, const Quantized& q);
  void use_sources(ActivationView* sources, int* num_sources, int64_t* k_channels, const std::vector<int32_t>& values,
                   int64_t first_pixel = 0);
  template <class T>
  const T* weight(const Node& node, size_t input) const;      // nullptr when the optional input is absent
  const Weight* find_weight(const Node& node, size_t input) const;

  void note_weights(const FusedNode& node);                   // the steps so far read them
  void place_inputs();
  // `overwrite`: values that the output may lie on; a buffer of -1 when it cannot.
  ValuePlace output_place(const FusedNode& node, const std::vector<int32_t>& overwrite) const;
  void place_output(const FusedNode& node, const std::vector<int32_t>& overwrite);
  bool can_overwrite(const FusedNode& node, int32_t value, const ValuePlace& output) const;
  void lower_node(const FusedNode& node);
  void lower_gemm(const FusedNode& node);
  GemmKernel choose_gemm(const FusedNode& node) const;
  bool wants_winograd(bool pays) const;       // where it can be used
  void lower_gemm_int8(const FusedNode& node);
  GemmKernel choose_gemm_int8(const FusedNode& node, const GemmArgs& layer, const Quantized& q) const;
  // What the loader reads, and what follows the product, of a strip or of the whole batch.
  void set_input(const FusedNode& node, const Strip& strip, GemmArgs* g);
  void set_product(const FusedNode& node, const Strip& strip, GemmArgs* g);
  bool is_read_as_bytes(int32_t value) const;
  Quantized add_quantized(int64_t batch, int64_t height, int64_t width, int64_t channels, bool scale_per_pixel, bool widened);
  bool reads_widened_pixels() const { return kernels_.tile.int8_bytes > 1; }      // in plain products
  void quantize(const FusedNode& node, const GemmArgs& layer, const Strip& strip, const Quantized& q);
  std::vector<int32_t> overwritten(const FusedNode& node, bool plain_product, bool in_strips) const;
  bool strips_save_memory(const FusedNode& node, bool plain_product, int64_t copy_bytes, int64_t strip_bytes) const;
  void multiply_int8(const FusedNode& node, const GemmArgs& layer, const Strip& strip, const Quantized& q);
  void set_geometry(const FusedNode& node, GemmArgs* g) const;
  // Whether the layer should make the sums of its output, and that it does: those of the step added last.
  bool makes_sums(const FusedNode& node) const { return request_.fuse && is_normalised_[static_cast<size_t>(node.output)]; }
  void make_sums(const FusedNode& node, GemmArgs* g);
  const ChannelSums& sums_of(int32_t value);
  void lower_depthwise(const FusedNode& node);
  void lower_group_norm(const FusedNode& node);
  void lower_layer_norm(const FusedNode& node);
  void lower_attention(const FusedNode& node);
  void lower_pointwise(const FusedNode& node);
  void lower_concat(const FusedNode& node);
  void lower_resize(const FusedNode& node);
  void lower_embedding(const FusedNode& node);
  void lower_timestep_embedding(const FusedNode& node);
  int64_t macs(int32_t node) const;

  const ValuePlace& place(int32_t value) const { return plan_.places[static_cast<size_t>(value)]; }
  const Node& plain(int32_t node) const { return graph_.nodes[static_cast<size_t>(node)]; }

  const PlanRequest& request_;
  const Graph& graph_;
  const StripRule strip_rule_;
  Plan& plan_;
  const KernelTable& kernels_;
  std::vector<FusedNode> fused_;
  std::vector<bool> wanted_;
  std::vector<int> last_reader_;              // per value: index of the fused node that reads it last
  std::vector<bool> is_normalised_;           // per value: a group_norm reads it
  std::map<int32_t, ChannelSums> sums_;       // by value
  std::vector<int32_t> norm_buffers_;         // per fused node: scale and shift of a group_norm
  std::vector<Pointer> pointers_;
  std::map<std::pair<int32_t, bool>, Quantized> quantized_;    // by value, and whether widened: with one scale per pixel
  bool half_ = false;                         // activations between fused nodes are fp16
  int current_ = 0;                           // index of the fused node being lowered
};

template <class Args>
KernelStep<Args>& Lowering::add_step(void (*kernel)(const Args*, int64_t, void*), const char* kernel_name, int32_t value) {
  auto step = std::make_unique<KernelStep<Args>>(kernel);
  step->name = std::string(kernel_name) + " " + graph_.value_name(value);
  step->node = fused_[static_cast<size_t>(current_)].node;
  KernelStep<Args>& reference = *step;
  plan_.steps.push_back(std::move(step));
  return reference;
}

template <class T>
const T* Lowering::weight(const Node& node, size_t input) const {
  const Weight* found = find_weight(node, input);
  return found ? reinterpret_cast<const T*>(found->data) : nullptr;
}

// The sinusoid of a diffusion timestep (timestep.cc): the same on every ISA, so it stands outside the kernel table.
struct TimestepArgs {
  const float* timestep;    // (batch)
  ActivationView output;    // (batch, size): cosines, then sines
  int64_t size;
};
void timestep_embedding(const TimestepArgs* args, int64_t image, void* scratch);

ValuePlace make_place(const Shape& shape, DType dtype);     // no buffer yet
int64_t place_bytes(const ValuePlace& place);

// No output pixel reads more than its own input pixel.
bool is_plain_product(const GemmArgs& args);

// Block sizes of a GEMM whose other fields are filled in; they depend on nothing but the layer and the register tile.
// `per_image`: a norm or an image bias makes images differ.
void choose_blocks(GemmArgs* args, const TileInfo& tile, bool per_image);
void choose_int8_blocks(GemmArgs* args, const TileInfo& tile, bool per_image);
void choose_winograd_blocks(GemmArgs* args, const TileInfo& tile);
void choose_narrow_blocks(GemmArgs* args, const TileInfo& tile);
void choose_winograd_int8_blocks(GemmArgs* args);
// By the geometry, channels and panels of a layer: whether the kernel can do it, and whether it is the faster one.
bool can_use_winograd(const GemmArgs& args);
bool winograd_pays(const GemmArgs& args);
bool can_use_winograd_int8(const GemmArgs& args);
bool winograd_int8_pays(const GemmArgs& args, const TileInfo& tile);
bool narrow_pays(const GemmArgs& args, const TileInfo& tile);

}  // namespace mdrt
