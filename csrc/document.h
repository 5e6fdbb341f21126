// The parts of a bundle's JSON document, checked against the tensors of the file (docs/format.md).
// Everything here throws Error(MDRT_ERROR_BUNDLE) naming the field.
#pragma once

#include <string_view>
#include <vector>

#include "bundle.h"
#include "fields.h"

namespace mdrt {

Graph parse_graph(std::string_view name, Json::Value document, TensorIndex& tensors);
// Checks the JSON text of a graph that has no file yet; its weights are taken to have the shapes and dtypes that it demands.
// Throws Error(MDRT_ERROR_ARGUMENT).
void check_graph(std::string_view json);
PipelineInfo parse_pipeline(Json::Value document, TensorIndex& tensors);
TokenizerInfo parse_tokenizer(Json::Value document, TensorIndex& tensors);
// The components that a pipeline needs, with the names, dtypes and channels that it feeds and expects.
void check_components(const std::vector<Graph>& graphs, const PipelineInfo& pipeline);

}  // namespace mdrt
