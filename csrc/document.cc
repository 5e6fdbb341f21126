#include "document.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops.h"
#include "quantised.h"

namespace mdrt {
namespace {

using Type = Json::Type;
using Value = Json::Value;

constexpr uint32_t kMaxWeights = 16384, kMaxNodes = 8192, kMaxNodeInputs = 64;

[[noreturn]] void refuse(const std::string& where, const std::string& what) { throw Error(MDRT_ERROR_BUNDLE, where + what); }

std::string at_index(const std::string& where, const char* list, uint32_t index) {
  return where + list + "[" + std::to_string(index) + "]: ";
}

GraphInput parse_input(Value value, const std::string& where) {
  const JsonFields fields(value, where, {"name", "dtype", "shape"});
  GraphInput input;
  input.name = fields.string("name");
  const std::string_view dtype = fields.string("dtype");
  if (dtype != "fp32" && dtype != "int32") fields.refuse("dtype", "must be fp32 or int32, not " + printable(dtype));
  input.dtype = dtype == "fp32" ? DType::fp32 : DType::int32;
  const Value shape = fields.array("shape");
  if (shape.size() > 4) fields.refuse("shape", "must have 1 to 4 dimensions");
  Value item = shape.first();
  for (uint32_t i = 0; i < shape.size(); ++i, item = item.next()) {
    Dimension dimension;
    if (item.type() == Type::integer && item.integer() >= 1) {
      dimension.size = item.integer();
    } else if (item.type() == Type::string && is_word(item.string())) {
      dimension.symbol = item.string();
    } else {
      fields.refuse("shape", "dimension " + std::to_string(i) + " is neither an integer >= 1 nor a symbol of [a-z_]");
    }
    input.shape.push_back(std::move(dimension));
  }
  return input;
}

AttributeValue parse_attribute(const JsonFields& fields, const OpAttribute& attribute) {
  AttributeValue result;
  const Value value = fields.at(attribute.name);
  if (attribute.type == AttributeType::real) {
    if (!value.is_number()) fields.refuse(attribute.name, "must be a number");
    result.real = value.real();
  } else if (attribute.type == AttributeType::word) {
    const std::string_view word = fields.string(attribute.name);
    const auto found = std::find_if(attribute.words.begin(), attribute.words.end(), [&](const char* w) { return word == w; });
    if (found == attribute.words.end()) fields.refuse(attribute.name, "cannot be '" + printable(word) + "'");
    result.integers[0] = found - attribute.words.begin();
  } else if (attribute.count == 1) {
    if (value.type() != Type::integer) fields.refuse(attribute.name, "must be an integer");
    result.integers[0] = value.integer();
  } else {
    const Value list = fields.array(attribute.name);
    if (list.size() != static_cast<uint32_t>(attribute.count))
      fields.refuse(attribute.name, "must have " + std::to_string(attribute.count) + " integers");
    Value item = list.first();
    for (uint32_t i = 0; i < list.size(); ++i, item = item.next()) {
      if (item.type() != Type::integer) fields.refuse(attribute.name, "must hold integers");
      result.integers[i] = item.integer();
    }
  }
  return result;
}

Node parse_node(Value value, const std::string& where) {
  const JsonFields fields(value, where, {"op", "name", "inputs", "attributes"});
  Node node;
  node.name = fields.string("name");
  const std::string op(fields.string("op"));
  const OpRow* row = find_op(op, &node.op);
  if (row == nullptr) fields.refuse("op", "'" + printable(op) + "' is not an op of this version");
  const Value inputs = fields.array("inputs");
  if (inputs.size() > kMaxNodeInputs) fields.refuse("inputs", "must have at most " + std::to_string(kMaxNodeInputs) + " entries");
  node.inputs.reserve(inputs.size());
  Value item = inputs.first();
  for (uint32_t i = 0; i < inputs.size(); ++i, item = item.next()) {
    if (item.type() != Type::integer || item.integer() < INT32_MIN || item.integer() > INT32_MAX)
      fields.refuse("inputs", "must hold the numbers of values");
    node.inputs.push_back(static_cast<int32_t>(item.integer()));
  }
  const Value attributes = fields.at("attributes");
  const std::string inside = where + "node '" + printable(node.name) + "' (" + row->name + "): attribute ";
  if (attributes.type() != Type::object) fields.refuse("attributes", "must be an object");
  Value key = attributes.first();
  for (uint32_t i = 0; i < attributes.size(); ++i, key = key.value().next())
    if (std::none_of(row->attributes.begin(), row->attributes.end(), [&](const OpAttribute& a) { return key.string() == a.name; }))
      refuse(inside, printable(key.string()) + " is unknown");
  node.attributes.reserve(row->attributes.size());
  for (const OpAttribute& attribute : row->attributes)
    node.attributes.push_back(parse_attribute(JsonFields(attributes, inside, {attribute.name}, {"*"}), attribute));
  return node;
}

// A graph whose weights have names only.
Graph parse_structure(std::string_view name, Value document) {
  Graph graph;
  graph.name = name;
  const std::string where = "component '" + graph.name + "': ";
  const JsonFields fields(document, where, {"inputs", "weights", "nodes", "outputs"});
  const auto each = [&](const char* key, uint32_t most, auto&& take) {
    const Value list = fields.array(key);
    if (list.size() > most) fields.refuse(key, "must have at most " + std::to_string(most) + " entries");
    Value item = list.first();
    for (uint32_t i = 0; i < list.size(); ++i, item = item.next()) take(item, at_index(where, key, i));
  };
  each("inputs", 64, [&](Value item, const std::string& at) { graph.inputs.push_back(parse_input(item, at)); });
  graph.weights.reserve(std::min(fields.array("weights").size(), kMaxWeights));
  each("weights", kMaxWeights, [&](Value item, const std::string& at) {
    if (item.type() != Type::string) refuse(at, "must be a name");
    graph.weights.push_back({std::string(item.string()), DType::fp32, {}});
  });
  graph.nodes.reserve(std::min(fields.array("nodes").size(), kMaxNodes));
  each("nodes", kMaxNodes, [&](Value item, const std::string& at) { graph.nodes.push_back(parse_node(item, at)); });
  each("outputs", 64, [&](Value item, const std::string& at) {
    const JsonFields output(item, at, {"name", "value"});
    graph.outputs.push_back({std::string(output.string("name")), static_cast<int32_t>(output.integer("value", 0, INT32_MAX))});
  });
  return graph;
}

void check_io(const Graph& graph, size_t index, const char* name, DType dtype, size_t rank, int64_t channels) {
  const std::string where = "component '" + graph.name + "': inputs[" + std::to_string(index) + "] ";
  if (index >= graph.inputs.size()) refuse(where, std::string("is missing; the pipeline feeds ") + name);
  const GraphInput& input = graph.inputs[index];
  if (input.name != name) refuse(where, "is called '" + input.name + "'; the pipeline feeds " + name);
  if (input.dtype != dtype) refuse(where, std::string("(") + name + ") has the dtype " + dtype_name(input.dtype));
  if (input.shape.size() != rank)
    refuse(where, std::string("(") + name + ") has " + std::to_string(input.shape.size()) + " dimensions, not " + std::to_string(rank));
  if (channels != 0 && input.shape.back().size != channels)
    refuse(where, std::string("(") + name + ") has " + std::to_string(input.shape.back().size) + " channels, not " + std::to_string(channels));
}

// Returns the channels of the one output.
int64_t check_output(const Graph& graph, size_t num_inputs, const char* name, size_t rank, int64_t channels) {
  const std::string where = "component '" + graph.name + "': ";
  if (graph.inputs.size() != num_inputs) refuse(where, "inputs has more entries than the pipeline feeds");
  const auto output = std::find_if(graph.outputs.begin(), graph.outputs.end(), [&](const GraphOutput& o) { return o.name == name; });
  if (output == graph.outputs.end()) refuse(where, std::string("outputs has no '") + name + "', which the pipeline reads");
  const Shape shape = known_shapes(graph)[static_cast<size_t>(output->value)];
  if (shape.size() != rank)
    refuse(where, std::string("output ") + name + " has " + std::to_string(shape.size()) + " dimensions, not " + std::to_string(rank));
  if (channels != 0 && shape.back() != channels)
    refuse(where, std::string("output ") + name + " has " + std::to_string(shape.back()) + " channels, not " + std::to_string(channels));
  return shape.back();
}

const double* doubles(const StoredTensor& tensor) { return reinterpret_cast<const double*>(tensor.data); }

ScheduleRow parse_row(const double* x, const std::string& where, int64_t num_train_timesteps) {
  for (int i = 0; i < 16; ++i)
    if (!std::isfinite(x[i])) refuse(where, "column " + std::to_string(i) + " is not finite");
  const ScheduleRow row{x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9], x[10], x[11], x[12], x[13]};
  if (row.t < 0 || row.t > static_cast<double>(num_train_timesteps))
    refuse(where, "t is not within 0 and " + std::to_string(num_train_timesteps));
  if (row.clip < 0) refuse(where, "clip is negative");
  if (row.keep != 0 && row.keep != 1) refuse(where, "keep is neither 0 nor 1");
  if (x[14] != 0 || x[15] != 0) refuse(where, "the last two columns are not zero");
  return row;
}

Schedule parse_schedule(Value value, const std::string& where, TensorIndex& tensors, int64_t num_train_timesteps) {
  const JsonFields fields(value, where, {"num_inference_steps", "scheduler", "guidance_scale", "init_noise_sigma"});
  Schedule schedule;
  schedule.num_inference_steps = static_cast<int>(fields.integer("num_inference_steps", 1, 1000));
  schedule.scheduler = fields.string("scheduler");
  const auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  if (schedule.scheduler.empty() || schedule.scheduler.size() > 32 ||
      !std::all_of(schedule.scheduler.begin(), schedule.scheduler.end(), allowed))
    fields.refuse("scheduler", "must be 1 to 32 characters of [a-z0-9_]");
  schedule.guidance_scale = fields.real("guidance_scale", 0, 1000);
  schedule.init_noise_sigma = fields.real("init_noise_sigma", 1e-6, 1e6);

  const std::string name = "schedules/" + std::to_string(schedule.num_inference_steps);
  const StoredTensor& tensor = tensors.claim(name, where);
  const int64_t steps = schedule.num_inference_steps;
  const std::string at = "tensor '" + name + "': ";
  if (tensor.dtype != DType::fp64 || tensor.shape.size() != 2 || tensor.shape[1] != 16)
    refuse(at, "must be F64 of shape [model calls, 16]");
  if (tensor.shape[0] < steps || tensor.shape[0] > 2 * steps)
    refuse(at, "has " + std::to_string(tensor.shape[0]) + " rows, which num_inference_steps " + std::to_string(steps) + " cannot have");
  schedule.rows.reserve(static_cast<size_t>(tensor.shape[0]));
  for (int64_t i = 0; i < tensor.shape[0]; ++i)
    schedule.rows.push_back(parse_row(doubles(tensor) + i * 16, at + "row " + std::to_string(i) + ": ", num_train_timesteps));
  return schedule;
}

// Returns num_train_timesteps.
int64_t check_scheduler_config(Value config, const std::string& where) {
  if (config.type() != Type::object) refuse(where, "scheduler_config must be an object");
  int64_t num_train_timesteps = 1000;
  Value key = config.first();
  for (uint32_t i = 0; i < config.size(); ++i, key = key.value().next()) {
    const Value value = key.value();
    if (value.type() == Type::object || value.type() == Type::array)
      refuse(where, "scheduler_config: " + printable(key.string()) + " must be a string, a number, a boolean or null");
    if (key.string() != "num_train_timesteps") continue;
    if (value.type() != Type::integer || value.integer() < 1 || value.integer() > 1000000)
      refuse(where, "scheduler_config: num_train_timesteps must be an integer from 1 to 1000000");
    num_train_timesteps = value.integer();
  }
  return num_train_timesteps;
}

bool all_zero(const std::byte* from, const std::byte* to) {
  return std::all_of(from, to, [](std::byte b) { return b == std::byte{0}; });
}

void parse_vocabulary(const StoredTensor& tensor, TokenizerInfo& info) {
  const std::string where = "tensor 'tokenizer/vocabulary': ";
  if (tensor.dtype != DType::uint8 || tensor.shape.size() != 1) refuse(where, "must be U8 with one dimension");
  const char* text = reinterpret_cast<const char*>(tensor.data);
  const char* const end = text + tensor.size_bytes;
  const char* last = end;    // one past the last line feed
  while (last != text && last[-1] == '\0') --last;
  if (end - last >= 64) refuse(where, "has more than 63 zeros at its end");
  if (last == text || last[-1] != '\n') refuse(where, "must end with a line feed and zeros");
  if (memchr(text, '\0', static_cast<size_t>(last - text)) != nullptr) refuse(where, "holds a zero byte inside");
  const int64_t lines = std::count(text, last, '\n');
  if (lines != info.vocab_size)
    refuse(where, "has " + std::to_string(lines) + " tokens, vocab_size is " + std::to_string(info.vocab_size));
  info.vocabulary = text;
  info.vocabulary_bytes = last - text;
}

void parse_merges(const StoredTensor& tensor, TokenizerInfo& info) {
  const std::string where = "tensor 'tokenizer/merges': ";
  if (tensor.dtype != DType::int32 || tensor.shape != std::vector<int64_t>{(info.num_merges + 7) / 8 * 8, 2})
    refuse(where, "must be I32 of shape [num_merges rounded up to a multiple of 8, 2]");
  const int32_t* ids = reinterpret_cast<const int32_t*>(tensor.data);
  for (int64_t i = 0; i < 2 * info.num_merges; ++i)
    if (ids[i] < 0 || ids[i] >= info.vocab_size)
      refuse(where, "merge " + std::to_string(i / 2) + " names token " + std::to_string(ids[i]) + ", vocab_size is " +
                        std::to_string(info.vocab_size));
  if (!all_zero(tensor.data + info.num_merges * 8, tensor.data + tensor.size_bytes)) refuse(where, "the padding is not zero");
  info.merges = ids;
}

DType demanded_dtype(const Node& node, const OpInput& slot) {
  if (slot.is_integer) return DType::int32;
  return is_quantised(node) && slot.weight_kind != WeightKind::vector ? DType::int8 : DType::fp32;
}

}  // namespace

Graph parse_graph(std::string_view name, Value document, TensorIndex& tensors) {
  if (!is_word(name)) refuse("components: ", "'" + printable(name) + "' is not 1 to 32 characters of [a-z_]");
  Graph graph = parse_structure(name, document);
  for (uint32_t i = 0; i < graph.weights.size(); ++i) {
    Weight& weight = graph.weights[i];
    const StoredTensor& tensor =
        tensors.claim(graph.name + "/" + weight.name, at_index("component '" + graph.name + "': ", "weights", i));
    weight = {std::move(weight.name), tensor.dtype, tensor.shape, tensor.data, tensor.size_bytes};
  }
  validate(graph);
  check_quantised_values(graph);
  return graph;
}

void check_graph(std::string_view json) try {
  const Json document(json, 16, "graph");
  Graph graph = parse_structure("graph", document.root());
  for (const Node& node : graph.nodes) {
    const std::vector<OpInput>& slots = op_row(node.op).inputs;
    for (size_t slot = 0; slot < std::min(node.inputs.size(), slots.size()); ++slot) {
      const bool takes_weight = slots[slot].kind == InputKind::weight || slots[slot].kind == InputKind::optional_weight;
      if (!takes_weight || !graph.is_weight(node.inputs[slot])) continue;
      Weight& weight = graph.weights[static_cast<size_t>(node.inputs[slot] - graph.weight_base())];
      const Shape logical = weight_shape(node, slot);
      const bool sound = std::all_of(logical.begin(), logical.end(), [](int64_t n) { return n >= 1 && n <= INT32_MAX; });
      if (!weight.shape.empty() || !sound) continue;
      weight.dtype = demanded_dtype(node, slots[slot]);
      weight.shape = stored_shape(slots[slot].weight_kind, weight.dtype, logical);
    }
  }
  validate(graph);
} catch (const Error& error) {
  throw Error(MDRT_ERROR_ARGUMENT, error.what());
}

PipelineInfo parse_pipeline(Value document, TensorIndex& tensors) {
  const std::string where = "pipeline: ";
  const JsonFields fields(document, where,
                          {"width", "height", "vae_scale_factor", "latent_channels", "scaling_factor", "shift_factor", "noise",
                           "scheduler_config", "schedules"});
  PipelineInfo info{};
  info.vae_scale_factor = static_cast<int>(fields.integer("vae_scale_factor", 1, 64));
  for (const char* side : {"width", "height"}) {
    const int64_t pixels = fields.integer(side, 1, 16384);
    if (pixels % info.vae_scale_factor != 0)
      fields.refuse(side, "must be a multiple of vae_scale_factor " + std::to_string(info.vae_scale_factor));
    (side[0] == 'w' ? info.width : info.height) = static_cast<int>(pixels);
  }
  info.latent_channels = static_cast<int>(fields.integer("latent_channels", 1, 1024));
  info.scaling_factor = fields.real("scaling_factor", 1e-6, 1e6);
  info.shift_factor = fields.real("shift_factor", -1e6, 1e6);
  info.noise = fields.string("noise");
  if (info.noise != "philox") fields.refuse("noise", "must be philox, not '" + printable(info.noise) + "'");
  const int64_t num_train_timesteps = check_scheduler_config(fields.at("scheduler_config"), where);

  const Value schedules = fields.array("schedules");
  if (schedules.size() < 1 || schedules.size() > 1000) fields.refuse("schedules", "must have 1 to 1000 entries");
  Value item = schedules.first();
  for (uint32_t i = 0; i < schedules.size(); ++i, item = item.next())
    info.schedules.push_back(parse_schedule(item, at_index(where, "schedules", i), tensors, num_train_timesteps));
  info.num_inference_steps = info.schedules[0].num_inference_steps;
  return info;
}

TokenizerInfo parse_tokenizer(Value document, TensorIndex& tensors) {
  const std::string where = "tokenizer: ";
  const JsonFields fields(document, where,
                          {"vocab_size", "num_merges", "model_max_length", "bos_token_id", "eos_token_id", "pad_token_id",
                           "unk_token_id"});
  TokenizerInfo info{};
  info.vocab_size = static_cast<int>(fields.integer("vocab_size", 1, 1 << 20));
  info.num_merges = fields.integer("num_merges", 0, 1 << 20);
  info.model_max_length = static_cast<int>(fields.integer("model_max_length", 2, 65536));
  info.bos_token_id = static_cast<int>(fields.integer("bos_token_id", 0, info.vocab_size - 1));
  info.eos_token_id = static_cast<int>(fields.integer("eos_token_id", 0, info.vocab_size - 1));
  info.pad_token_id = static_cast<int>(fields.integer("pad_token_id", 0, info.vocab_size - 1));
  info.unk_token_id = static_cast<int>(fields.integer("unk_token_id", 0, info.vocab_size - 1));
  parse_vocabulary(tensors.claim("tokenizer/vocabulary", where), info);
  if (info.num_merges > 0) parse_merges(tensors.claim("tokenizer/merges", where), info);
  return info;
}

void check_components(const std::vector<Graph>& graphs, const PipelineInfo& pipeline) {
  const auto find = [&](const char* name) -> const Graph* {
    for (const Graph& graph : graphs)
      if (graph.name == name) return &graph;
    return nullptr;
  };
  for (const char* name : {"text_encoder", "unet", "vae_decoder"})
    if (find(name) == nullptr) refuse("components: ", std::string(name) + " is missing; a bundle with a pipeline needs it");
  const int64_t latent = pipeline.latent_channels;
  const Graph& text_encoder = *find("text_encoder");
  check_io(text_encoder, 0, "input_ids", DType::int32, 2, 0);
  const int64_t width = check_output(text_encoder, 1, "last_hidden_state", 3, 0);

  const Graph& unet = *find("unet");
  check_io(unet, 0, "sample", DType::fp32, 4, latent);
  check_io(unet, 1, "timestep", DType::fp32, 1, 0);
  check_io(unet, 2, "encoder_hidden_states", DType::fp32, 3, width);
  check_output(unet, 3, "out_sample", 4, latent);

  const Graph& decoder = *find("vae_decoder");
  check_io(decoder, 0, "latent_sample", DType::fp32, 4, latent);
  check_output(decoder, 1, "sample", 4, 3);

  const Graph* encoder = find("vae_encoder");
  if (encoder == nullptr) return;
  check_io(*encoder, 0, "sample", DType::fp32, 4, 3);
  check_output(*encoder, 1, "latent_parameters", 4, 2 * latent);
}

}  // namespace mdrt
