#include "fuse.h"

#include <algorithm>

namespace mdrt {
namespace {

bool is_gemm(const FusedNode& node) { return node.op == OpType::conv2d || node.op == OpType::linear; }

// Nothing was folded behind the product yet.
bool has_plain_output(const FusedNode& node) {
  return node.activation == Activation::none && !node.gated && node.residual < 0 && node.image_bias < 0;
}

class Fuser {
 public:
  Fuser(const Graph& graph, const std::vector<Shape>& shapes, const std::vector<bool>& wanted)
      : graph(graph), shapes(shapes), wanted(wanted) {
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      FusedNode fused;
      fused.op = graph.nodes[i].op;
      fused.node = static_cast<int32_t>(i);
      fused.output = graph.node_base() + static_cast<int32_t>(i);
      for (int32_t value : graph.nodes[i].inputs) {
        if (!graph.is_weight(value)) fused.inputs.push_back(value);
      }
      nodes.push_back(fused);
    }
    drop_unused();
  }

  // The live node that makes `value` if exactly one other node reads it; nullptr otherwise.
  FusedNode* single_use_producer(int32_t value) {
    const size_t v = static_cast<size_t>(value);
    return !wanted[v] && uses_[v] == 1 && producers_[v] >= 0 ? &nodes[static_cast<size_t>(producers_[v])] : nullptr;
  }

  // `consumer` takes the place of `producer`'s work: it becomes `merged`, which runs at consumer's position, where all
  // that either needs exists.
  void absorb(FusedNode* producer, FusedNode& consumer, FusedNode merged) {
    merged.output = consumer.output;
    producer->alive = false;
    consumer = merged;
  }

  // `node` reads `inputs` in place of its first input.
  void redirect(FusedNode& node, const std::vector<int32_t>& inputs) {
    --uses_[static_cast<size_t>(node.inputs[0])];
    for (int32_t value : inputs) ++uses_[static_cast<size_t>(value)];
    node.inputs = inputs;
  }

  int64_t channels(int32_t value) const { return shapes[static_cast<size_t>(value)].back(); }
  const Shape& shape(int32_t value) const { return shapes[static_cast<size_t>(value)]; }
  int32_t index_of(const FusedNode* node) const { return static_cast<int32_t>(node - nodes.data()); }
  const Node& plain(const FusedNode& node) const { return graph.nodes[static_cast<size_t>(node.node)]; }

  const Graph& graph;
  const std::vector<Shape>& shapes;
  const std::vector<bool>& wanted;
  std::vector<FusedNode> nodes;

 private:
  void drop_unused() {
    std::vector<bool> needed = wanted;
    uses_.assign(wanted.size(), 0);
    producers_.assign(wanted.size(), -1);
    for (size_t i = nodes.size(); i-- > 0;) {
      FusedNode& node = nodes[i];
      node.alive = needed[static_cast<size_t>(node.output)];
      if (!node.alive) continue;
      producers_[static_cast<size_t>(node.output)] = static_cast<int32_t>(i);
      for (int32_t value : node.inputs) {
        needed[static_cast<size_t>(value)] = true;
        ++uses_[static_cast<size_t>(value)];
      }
    }
  }

  std::vector<int> uses_;            // readers of each value
  std::vector<int32_t> producers_;   // index of the live node that makes it; -1: none
};

// ---- the rules: each looks at one live node and folds a neighbour into it ----

bool activation_of(OpType op, Activation* activation) {
  switch (op) {
    case OpType::silu: *activation = Activation::silu; return true;
    case OpType::gelu: *activation = Activation::gelu; return true;
    case OpType::quick_gelu: *activation = Activation::quick_gelu; return true;
    default: return false;
  }
}

// group_norm -> silu
bool norm_activation(Fuser& f, FusedNode& node) {
  Activation activation;
  if (!activation_of(node.op, &activation)) return false;
  FusedNode* norm = f.single_use_producer(node.inputs[0]);
  if (!norm || norm->op != OpType::group_norm || norm->activation != Activation::none) return false;
  FusedNode merged = *norm;
  merged.activation = activation;
  f.absorb(norm, node, merged);
  return true;
}

// concat -> {group_norm, conv2d}: both read several sources, so the copy disappears if every reader is one of them.
bool concat_sources(Fuser& f, FusedNode& concat) {
  if (concat.op != OpType::concat || f.wanted[static_cast<size_t>(concat.output)] || concat.inputs.size() != 2) return false;
  if (f.channels(concat.inputs[0]) % kPanel != 0) return false;    // padding inside K would not match the stored weight
  std::vector<FusedNode*> readers;
  for (FusedNode& node : f.nodes) {
    if (!node.alive) continue;
    if (node.residual == concat.output || node.image_bias == concat.output) return false;
    if (std::find(node.inputs.begin(), node.inputs.end(), concat.output) == node.inputs.end()) continue;
    if (node.op != OpType::group_norm && node.op != OpType::conv2d) return false;
    readers.push_back(&node);
  }
  for (FusedNode* reader : readers) f.redirect(*reader, concat.inputs);
  concat.alive = false;
  return true;
}

// depthwise_conv2d -> conv2d 1x1
bool depthwise_pointwise(Fuser& f, FusedNode& node) {
  if (node.op != OpType::conv2d || node.depthwise >= 0 || node.norm >= 0 || node.resize >= 0 || node.inputs.size() != 1) return false;
  const Node& conv = f.plain(node);
  for (int i = 0; i < 2; ++i) {
    if (attribute_int(conv, "kernel_size", i) != 1 || attribute_int(conv, "stride", i) != 1) return false;
  }
  for (int i = 0; i < 4; ++i) {
    if (attribute_int(conv, "pads", i) != 0) return false;
  }
  FusedNode* depthwise = f.single_use_producer(node.inputs[0]);
  if (!depthwise || depthwise->op != OpType::depthwise_conv2d) return false;
  FusedNode merged = node;
  merged.depthwise = depthwise->node;
  merged.inputs = depthwise->inputs;
  f.absorb(depthwise, node, merged);
  return true;
}

// {upsample, resize_like} -> conv2d
bool resize_conv(Fuser& f, FusedNode& node) {
  if (node.op != OpType::conv2d || node.resize >= 0 || node.norm >= 0 || node.inputs.size() != 1) return false;
  FusedNode* resize = f.single_use_producer(node.inputs[0]);
  if (!resize || (resize->op != OpType::upsample && resize->op != OpType::resize_like)) return false;
  FusedNode merged = node;
  merged.resize = resize->node;
  merged.inputs = {resize->inputs[0]};
  f.absorb(resize, node, merged);
  return true;
}

// group_norm (-> silu) -> {conv2d, linear}
bool norm_gemm(Fuser& f, FusedNode& node) {
  if (!is_gemm(node) || node.norm >= 0 || node.inputs.size() != 1) return false;
  FusedNode* norm = f.single_use_producer(node.inputs[0]);
  if (!norm || norm->op != OpType::group_norm || f.shape(norm->inputs[0]).size() < 3) return false;
  norm->stats_only = true;
  node.norm = f.index_of(norm);
  node.input_activation = norm->activation;
  f.redirect(node, norm->inputs);
  return true;
}

// {conv2d, linear} -> {silu, gelu, quick_gelu}
bool gemm_activation(Fuser& f, FusedNode& node) {
  Activation activation;
  if (!activation_of(node.op, &activation)) return false;
  FusedNode* gemm = f.single_use_producer(node.inputs[0]);
  if (!gemm || !is_gemm(*gemm) || gemm->gated || gemm->residual >= 0 || gemm->activation != Activation::none) return false;
  FusedNode merged = *gemm;
  merged.activation = activation;
  f.absorb(gemm, node, merged);
  return true;
}

// {conv2d, linear} -> gated_unit
bool gemm_gate(Fuser& f, FusedNode& node) {
  if (node.op != OpType::gated_unit || f.channels(node.output) % kPanel != 0) return false;
  FusedNode* gemm = f.single_use_producer(node.inputs[0]);
  if (!gemm || !is_gemm(*gemm) || !has_plain_output(*gemm)) return false;
  FusedNode merged = *gemm;
  merged.gated = true;
  merged.activation = attribute_int(f.plain(node), "act_fn") == 0 ? Activation::silu : Activation::gelu;
  f.absorb(gemm, node, merged);
  return true;
}

// {conv2d, linear} + (n, channels)
bool gemm_image_bias(Fuser& f, FusedNode& node) {
  if (node.op != OpType::add || f.shape(node.inputs[1]).size() != 2 || f.shape(node.inputs[0]).size() == 2) return false;
  FusedNode* gemm = f.single_use_producer(node.inputs[0]);
  if (!gemm || !is_gemm(*gemm) || !has_plain_output(*gemm)) return false;
  FusedNode merged = *gemm;
  merged.image_bias = node.inputs[1];
  f.absorb(gemm, node, merged);
  return true;
}

// {conv2d, linear} + tensor; of two candidates the later one, because the other's result exists by then.
bool gemm_residual(Fuser& f, FusedNode& node) {
  if (node.op != OpType::add || f.shape(node.inputs[0]) != f.shape(node.inputs[1]) || node.inputs[0] == node.inputs[1]) return false;
  FusedNode* best = nullptr;
  int32_t residual = -1;
  for (size_t i = 0; i < 2; ++i) {
    FusedNode* gemm = f.single_use_producer(node.inputs[i]);
    if (!gemm || !is_gemm(*gemm) || gemm->residual >= 0) continue;
    if (best && f.index_of(gemm) < f.index_of(best)) continue;
    best = gemm;
    residual = node.inputs[1 - i];
  }
  if (!best) return false;
  FusedNode merged = *best;
  merged.residual = residual;
  f.absorb(best, node, merged);
  return true;
}

struct Fusion {
  const char* pattern;
  bool (*apply)(Fuser&, FusedNode&);
};

// In the order in which they are tried.
constexpr Fusion kFusions[] = {
    {"group_norm -> activation", norm_activation},
    {"concat -> group_norm, conv2d", concat_sources},
    {"depthwise_conv2d -> conv2d 1x1", depthwise_pointwise},
    {"upsample, resize_like -> conv2d", resize_conv},
    {"group_norm -> conv2d, linear", norm_gemm},
    {"conv2d, linear -> gated_unit", gemm_gate},
    {"conv2d, linear + (n, channels)", gemm_image_bias},
    {"conv2d, linear -> activation", gemm_activation},
    {"conv2d, linear + tensor", gemm_residual},
};

}  // namespace

std::vector<FusedNode> fuse(const Graph& graph, const std::vector<Shape>& shapes, const std::vector<bool>& wanted, bool enabled) {
  Fuser fuser(graph, shapes, wanted);
  if (enabled) {
    for (const Fusion& fusion : kFusions) {
      for (FusedNode& node : fuser.nodes) {
        if (node.alive) fusion.apply(fuser, node);
      }
    }
  }
  return fuser.nodes;
}

}  // namespace mdrt
