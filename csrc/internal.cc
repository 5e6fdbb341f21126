#include "internal.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/cpu.h"
#include "capi.h"
#include "component.h"
#include "crc32c.h"
#include "document.h"
#include "formats.h"
#include "noise.h"
#include "ops.h"
#include "peak.h"
#include "profile.h"
#include "registry.h"

namespace mdrt {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

std::string make_build_json() {
  std::string chosen;
  try {
    chosen = choose_isa("").name;
  } catch (const Error&) {
    // MDRT_ISA names one that does not run here: none is chosen, and opening a model says why.
  }
  std::string text = std::string("{\"version\": \"") + mdrt_version() + "\", \"compiler\": \"" + kCompiler +
                     "\", \"compiler_flags\": \"" MDRT_COMPILER_FLAGS "\", \"cpu_features\": \"" + cpu_features() +
                     "\", \"usable_cores\": " + std::to_string(usable_cores()) + ", \"isas\": [";
  for (const Isa& isa : compiled_isas()) {
    if (text.back() != '[') text += ", ";
    text += std::string("{\"name\": \"") + isa.name + "\", \"features\": \"" + isa.features +
            "\", \"flags\": \"" + isa.flags + "\", \"compiled\": true, \"usable\": " + (is_usable(isa) ? "true" : "false") +
            ", \"chosen\": " + (chosen == isa.name ? "true" : "false") + "}";
  }
  return text + "]}";
}

// Made once and never freed: callers may hold it until the process ends.
template <std::string (*make)()>
const char* text_of() {
  try {
    static const std::string* text = new std::string(make());
    return text->c_str();
  } catch (...) {
    return "{}";
  }
}

void free_text(char* text) { free(text); }

Shape shape_of(const int64_t* sizes, int32_t rank) {
  if (!sizes || rank < 1 || rank > 6) throw Error(MDRT_ERROR_ARGUMENT, "a weight has 1 to 6 dimensions");
  return Shape(sizes, sizes + rank);
}

mdrt_status stored_shape_of(const char* kind, const char* format, const int64_t* shape, int32_t rank, int64_t* stored,
                            int32_t* stored_rank, char* errbuf, size_t errbuf_size) {
  return guarded(errbuf, errbuf_size, [&] {
    const Format& row = find_format(kind, format);
    const Shape found = stored_shape(row.kind, row.dtype, shape_of(shape, rank));
    std::copy(found.begin(), found.end(), stored);
    *stored_rank = static_cast<int32_t>(found.size());
  });
}

mdrt_status pack_weight(const char* kind, const char* format, const float* source, const int64_t* shape, int32_t rank,
                        void* destination, size_t destination_bytes, char* errbuf, size_t errbuf_size) {
  return guarded(errbuf, errbuf_size, [&] {
    pack(find_format(kind, format), source, shape_of(shape, rank), destination,
         static_cast<int64_t>(destination_bytes));
  });
}

mdrt_status unpack_weight(const char* kind, const char* format, const void* source, size_t source_bytes,
                          const int64_t* shape, int32_t rank, float* destination, char* errbuf, size_t errbuf_size) {
  return guarded(errbuf, errbuf_size, [&] {
    unpack(find_format(kind, format), source, static_cast<int64_t>(source_bytes), shape_of(shape, rank), destination);
  });
}

// These three read what never changes while a model is open, so they take no lock.
const char* metadata(const mdrt_model* model) { return model->handle->model->bundle().metadata().c_str(); }

int32_t tensor_count(const mdrt_model* model) {
  return static_cast<int32_t>(model->handle->model->bundle().tensors().size());
}

mdrt_status tensor(const mdrt_model* model, int32_t index, const char** name, const char** dtype, int64_t shape[6],
                   int32_t* rank, const void** data, size_t* size_bytes) {
  const std::vector<StoredTensor>& tensors = model->handle->model->bundle().tensors();
  if (index < 0 || static_cast<size_t>(index) >= tensors.size()) return MDRT_ERROR_ARGUMENT;
  const StoredTensor& found = tensors[static_cast<size_t>(index)];
  *name = found.name.c_str();
  *dtype = dtype_name(found.dtype);
  std::copy(found.shape.begin(), found.shape.end(), shape);
  *rank = static_cast<int32_t>(found.shape.size());
  *data = found.data;
  *size_bytes = static_cast<size_t>(found.size_bytes);
  return MDRT_OK;
}

mdrt_status tokenize(mdrt_model* model, const char* text, size_t text_bytes, int32_t padded, int32_t* ids,
                     size_t capacity, size_t* count) {
  return with_model(model->handle, [&](Model& open) {
    const std::string_view view(text, text_bytes);
    const std::vector<int32_t> found = padded ? open.tokenizer().encode_padded(view) : open.tokenizer().encode(view);
    *count = found.size();
    std::copy_n(found.begin(), std::min(capacity, found.size()), ids);
  });
}

mdrt_status describe_plan(mdrt_model* model, const char* component, const mdrt_tensor* inputs, int32_t num_inputs,
                          char** text) {
  *text = nullptr;
  return with_model(model->handle, [&](Model& open) {
    if (model->handle->unfinished_job) throw Error(MDRT_ERROR_STATE, "a job of this model is unfinished; end it first");
    const Graph& graph = open.graph(component);
    std::vector<Shape> shapes;
    for (const Feed& feed : read_inputs(graph, inputs, num_inputs, false)) shapes.push_back(feed.shape);
    std::vector<int32_t> wanted;
    for (const GraphOutput& output : graph.outputs) wanted.push_back(output.value);
    Executor& executor = open.executor(component);
    executor.prepare(shapes, wanted);
    *text = strdup(executor.describe().c_str());
    if (!*text) throw std::bad_alloc();
  });
}

mdrt_status profile(mdrt_model* model, const char* component, const mdrt_tensor* inputs, int32_t num_inputs, int32_t rounds,
                    void (*visit)(const mdrt_profiled_step* step, void* user), void* user) {
  return with_model(model->handle, [&](Model& open) {
    Handle& handle = *model->handle;
    if (handle.unfinished_job) throw Error(MDRT_ERROR_STATE, "a job of this model is unfinished; end it first");
    handle.cancel = false;
    const Stop stop = {&handle.cancel, handle.poll, handle.poll_user};
    for (const StepProfile& step : profile_component(open, stop, component, inputs, num_inputs, rounds)) {
      const mdrt_profiled_step seen = {step.step->name.c_str(), step.step->node, step.step->tasks, step.step->macs, step.seconds.data()};
      visit(&seen, user);
    }
  });
}

mdrt_status set_plan_options(mdrt_model* model, const char* isa, int32_t fuse) {
  return with_model(model->handle, [&](Model& open) {
    if (model->handle->unfinished_job) throw Error(MDRT_ERROR_STATE, "a job of this model is unfinished; end it first");
    const std::string name = isa ? isa : "";
    choose_isa(name);    // refuses an ISA that cannot run before the old plans are dropped
    open.set_plan_options(name, fuse != 0);
  });
}

mdrt_status set_poll(mdrt_model* model, int (*poll)(void* user), void* user) {
  return with_model(model->handle, [&](Model&) {
    model->handle->poll = poll;
    model->handle->poll_user = user;
  });
}

mdrt_status peak(const char* what, const char* isa, int32_t threads, int32_t passes, double* per_second, char* errbuf,
                 size_t errbuf_size) {
  return guarded(errbuf, errbuf_size, [&] { *per_second = measure_peak(what, choose_isa(isa), threads, passes); });
}

mdrt_status validate_graph(const char* json, size_t json_bytes, char* errbuf, size_t errbuf_size) {
  return guarded(errbuf, errbuf_size, [&] { check_graph(std::string_view(json, json_bytes)); });
}

const mdrt_internal_table kTable = {
    sizeof(mdrt_internal_table),
    text_of<op_table_json>,
    text_of<make_build_json>,
    free_text,
    stored_shape_of,
    pack_weight,
    unpack_weight,
    crc32c,
    philox_normal,
    metadata,
    tensor_count,
    tensor,
    tokenize,
    describe_plan,
    set_plan_options,
    set_poll,
    profile,
    peak,
    validate_graph,
};

}  // namespace
}  // namespace mdrt

const mdrt_internal_table* mdrt_internal(void) { return &mdrt::kTable; }
