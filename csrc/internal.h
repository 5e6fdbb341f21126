// mdrt_internal: what the Python extension needs beyond mdrt.h. Unstable: it belongs to exactly one build of libmdrt.
// Functions return MDRT_OK or fill errbuf with a sentence. No exception crosses this table.
#pragma once

#include "mdrt.h"

extern "C" {

// One step of a plan as `profile` saw it. Pointers are valid during the visit only.
struct mdrt_profiled_step {
  const char* name;         // kernel, blank, value
  int32_t node;             // of the component's graph: the op at the heart of the step
  int64_t tasks, macs;
  const double* seconds;    // of every round
};

struct mdrt_internal_table {
  size_t struct_size;
  // JSON texts; valid for the life of the process.
  const char* (*op_table_json)();         // the rows of ops.def
  const char* (*build_json)();            // version, compiler and its flags, and per ISA: flags, compiled, usable, chosen;
                                          // CPU features
  // Text that the caller frees with free_text().
  void (*free_text)(char* text);

  // Weights: logical fp32 array -> stored bytes, and back.
  // kind: "panel" | "vector" | "table" | "depthwise"; format: "fp32" | "fp16".
  mdrt_status (*stored_shape)(const char* kind, const char* format, const int64_t* shape, int32_t rank, int64_t* stored,
                              int32_t* stored_rank, char* errbuf, size_t errbuf_size);
  mdrt_status (*pack)(const char* kind, const char* format, const float* source, const int64_t* shape, int32_t rank,
                      void* destination, size_t destination_bytes, char* errbuf, size_t errbuf_size);
  mdrt_status (*unpack)(const char* kind, const char* format, const void* source, size_t source_bytes,
                        const int64_t* shape, int32_t rank, float* destination, char* errbuf, size_t errbuf_size);

  uint32_t (*crc32c)(uint32_t crc, const void* data, size_t size_bytes);    // start with 0
  void (*philox_normal)(uint64_t seed, uint32_t offset, int64_t count, float* out);

  // Of an open model.
  const char* (*metadata)(const mdrt_model* model);    // the bundle's JSON document
  int32_t (*tensor_count)(const mdrt_model* model);
  // A stored tensor: name, dtype ("fp32", ...), shape, mapped bytes.
  mdrt_status (*tensor)(const mdrt_model* model, int32_t index, const char** name, const char** dtype, int64_t shape[6],
                        int32_t* rank, const void** data, size_t* size_bytes);
  // *count is how many ids there are, even when they do not fit into `capacity`.
  mdrt_status (*tokenize)(mdrt_model* model, const char* text, size_t text_bytes, int32_t padded, int32_t* ids,
                          size_t capacity, size_t* count);
  // Plans a component for input shapes (as in mdrt_run; data ignored) and describes the plan, one line per step.
  mdrt_status (*describe_plan)(mdrt_model* model, const char* component, const mdrt_tensor* inputs, int32_t num_inputs,
                               char** text);
  // Forces an ISA for this model ("" = as chosen) and fusion on or off.
  mdrt_status (*set_plan_options)(mdrt_model* model, const char* isa, int32_t fuse);
  // `poll` is called on the calling thread between the slices of mdrt_run (about every 50 ms); another return value
  // than 0 cancels the call. nullptr: none.
  mdrt_status (*set_poll)(mdrt_model* model, int (*poll)(void* user), void* user);

  // Plans a component as describe_plan does, runs it once to warm up and then `rounds` times, each step by itself under a
  // clock, and visits the steps in their order. `inputs` with data.
  mdrt_status (*profile)(mdrt_model* model, const char* component, const mdrt_tensor* inputs, int32_t num_inputs,
                         int32_t rounds, void (*visit)(const mdrt_profiled_step* step, void* user), void* user);

  // The most that this machine can do per second, with an ISA ("" = as chosen) and a number of threads (0: as for a model):
  // what = "fp32", "int8": multiply-adds; "read": bytes of memory read. The best of `passes`.
  mdrt_status (*measure_peak)(const char* what, const char* isa, int32_t threads, int32_t passes, double* per_second,
                              char* errbuf, size_t errbuf_size);

  // Checks a graph document (docs/format.md, "Graph") as opening a bundle does, its weights taken as stored in fp32.
  mdrt_status (*validate_graph)(const char* json, size_t json_bytes, char* errbuf, size_t errbuf_size);
};

MDRT_API const mdrt_internal_table* mdrt_internal(void);

}
