#include "capi.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "component.h"

#ifndef MDRT_VERSION
#define MDRT_VERSION "0.0.0"
#endif

namespace mdrt {
namespace {

constexpr int kMaxThreads = 1024;

mdrt_status open_model(const mdrt_options* options, mdrt_model** model, char* errbuf, size_t errbuf_size,
                       std::unique_ptr<Bundle> (*open)(const void*, size_t), const void* source, size_t size_bytes) {
  if (errbuf && errbuf_size > 0) errbuf[0] = '\0';
  if (model) *model = nullptr;
  return guarded(errbuf, errbuf_size, [&] {
    required(model, "model");
    mdrt_options chosen;
    mdrt_options_init(&chosen);
    if (options) {
      if (options->struct_size != sizeof chosen) {
        throw Error(MDRT_ERROR_ARGUMENT, "options.struct_size is wrong; prepare the struct with mdrt_options_init");
      }
      chosen = *options;
    }
    if (chosen.threads < 0 || chosen.threads > kMaxThreads) {
      throw fail(MDRT_ERROR_ARGUMENT, "threads is %d, but must be from 0 to %d", chosen.threads, kMaxThreads);
    }
    if (chosen.max_memory_bytes < 0)
      throw Error(MDRT_ERROR_ARGUMENT, "max_memory_bytes is negative; use 0 for what is available");
    auto opened = std::make_unique<mdrt_model>();
    opened->handle = std::make_shared<Handle>();
    opened->handle->model = std::make_unique<Model>(open(source, size_bytes), chosen.threads, chosen.max_memory_bytes);
    *model = opened.release();
  });
}

void describe(mdrt_tensor* tensor, const std::string& name, DType dtype, const Shape& shape) {
  *tensor = {};
  tensor->name = name.c_str();
  tensor->dtype = dtype == DType::int32 ? MDRT_INT32 : MDRT_FP32;
  tensor->rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor->shape);
}

void refuse_beside_job(const Handle& handle) {
  if (!handle.unfinished_job) return;
  throw Error(MDRT_ERROR_STATE, "a job of this model is unfinished; advance it to its end or call mdrt_end first");
}

void check_params(const mdrt_generate_params* params) {
  if (required(params, "params").struct_size != sizeof *params) {
    throw Error(MDRT_ERROR_ARGUMENT, "params.struct_size is wrong; prepare the struct with mdrt_generate_params_init");
  }
}

size_t row_bytes(const Job& job) { return static_cast<size_t>(job.width()) * 3; }

void check_stride(const Job& job, size_t stride_bytes) {
  if (stride_bytes >= row_bytes(job)) return;
  throw fail(MDRT_ERROR_ARGUMENT, "stride_bytes is %zu, but a row of %d RGB pixels has %zu bytes", stride_bytes,
             job.width(), row_bytes(job));
}

void copy_pixels(const Job& job, uint8_t* pixels, size_t stride_bytes) {
  required(pixels, "pixels");
  check_stride(job, stride_bytes);
  if (job.pixels().empty()) throw Error(MDRT_ERROR_STATE, "there is no picture: the job was begun with latent_only");
  for (size_t y = 0; y < static_cast<size_t>(job.height()); ++y) {
    memcpy(pixels + y * stride_bytes, job.pixels().data() + y * row_bytes(job), row_bytes(job));
  }
}

const Job& finished_job(const mdrt_job& job) {
  if (job.failed) throw Error(MDRT_ERROR_STATE, "the job failed or was cancelled; begin a new one");
  if (!job.job->done())
    throw Error(MDRT_ERROR_STATE, "the job is unfinished; call mdrt_advance until stage is MDRT_STAGE_DONE");
  return *job.job;
}

// For calls on a job that need no model: results stay readable after mdrt_close.
template <class Body>
mdrt_status with_job(mdrt_job* job, Body body) noexcept {
  if (!job) return MDRT_ERROR_ARGUMENT;
  Handle& handle = *job->handle;
  return guarded(handle.error, sizeof handle.error, [&] {
    HandleLock lock(handle);
    body();
  });
}

}  // namespace

}  // namespace mdrt

using namespace mdrt;

const char* mdrt_version(void) { return MDRT_VERSION; }

const char* mdrt_status_string(mdrt_status status) {
  switch (status) {
    case MDRT_OK:
      return "ok";
    case MDRT_ERROR_ARGUMENT:
      return "argument not acceptable";
    case MDRT_ERROR_IO:
      return "file cannot be opened or read";
    case MDRT_ERROR_BUNDLE:
      return "not a valid bundle";
    case MDRT_ERROR_VERSION:
      return "another version of mdrt is needed";
    case MDRT_ERROR_MEMORY:
      return "not enough memory";
    case MDRT_ERROR_CANCELLED:
      return "cancelled";
    case MDRT_ERROR_NUMERIC:
      return "NaN or infinity in a result";
    case MDRT_ERROR_STATE:
      return "call out of order";
    case MDRT_ERROR_INTERNAL:
      return "internal error";
  }
  return "unknown status";
}

void mdrt_options_init(mdrt_options* options) {
  if (!options) return;
  *options = {};
  options->struct_size = sizeof *options;
}

void mdrt_generate_params_init(mdrt_generate_params* params) {
  if (!params) return;
  *params = {};
  params->struct_size = sizeof *params;
  params->guidance_scale = std::numeric_limits<double>::quiet_NaN();
  params->init_noise_sigma = 1;
}

mdrt_status mdrt_open(const char* path, const mdrt_options* options, mdrt_model** model, char* errbuf,
                      size_t errbuf_size) {
  return open_model(
      options, model, errbuf, errbuf_size,
      [](const void* source, size_t) { return Bundle::open(&required(static_cast<const char*>(source), "path")); },
      path, 0);
}

mdrt_status mdrt_open_memory(const void* data, size_t size_bytes, const mdrt_options* options, mdrt_model** model,
                             char* errbuf, size_t errbuf_size) {
  return open_model(
      options, model, errbuf, errbuf_size,
      [](const void* source, size_t size) {
        required(static_cast<const char*>(source), "data");
        if (reinterpret_cast<uintptr_t>(source) % 64 != 0)
          throw Error(MDRT_ERROR_ARGUMENT, "data must be aligned to 64 bytes");
        return Bundle::from_memory(source, size);
      },
      data, size_bytes);
}

void mdrt_close(mdrt_model* model) {
  if (!model) return;
  const std::shared_ptr<Handle> handle = model->handle;
  const mdrt_status status = guarded(handle->error, sizeof handle->error, [&] {
    HandleLock lock(*handle);
    handle->model.reset();
    handle->unfinished_job = nullptr;
  });
  // From inside its own callback the model cannot go: the running call still needs it.
  if (status == MDRT_OK) delete model;
}

const char* mdrt_error_message(const mdrt_model* model) { return model ? model->handle->error : "model is NULL"; }

void mdrt_cancel(mdrt_model* model) {
  if (model) model->handle->cancel = true;
}

mdrt_status mdrt_verify(mdrt_model* model) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) { open.bundle().verify(); });
}

mdrt_status mdrt_get_size(mdrt_model* model, int32_t* width, int32_t* height) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    required(width, "width") = open.pipeline().width;
    required(height, "height") = open.pipeline().height;
  });
}

mdrt_status mdrt_get_schedule_count(mdrt_model* model, int32_t* count) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    required(count, "count") = static_cast<int32_t>(open.pipeline().schedules.size());
  });
}

mdrt_status mdrt_get_schedule(mdrt_model* model, int32_t index, int32_t* num_inference_steps, double* guidance_scale,
                              const char** scheduler) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    const std::vector<Schedule>& schedules = open.pipeline().schedules;
    if (index < 0 || static_cast<size_t>(index) >= schedules.size()) {
      throw fail(MDRT_ERROR_ARGUMENT, "there is no schedule %d; the bundle has %zu", index, schedules.size());
    }
    const Schedule& schedule = schedules[static_cast<size_t>(index)];
    required(num_inference_steps, "num_inference_steps") = schedule.num_inference_steps;
    required(guidance_scale, "guidance_scale") = schedule.guidance_scale;
    required(scheduler, "scheduler") = schedule.scheduler.c_str();
  });
}

mdrt_status mdrt_get_component_count(mdrt_model* model, int32_t* count) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    required(count, "count") = static_cast<int32_t>(open.bundle().graphs().size());
  });
}

mdrt_status mdrt_get_component_name(mdrt_model* model, int32_t index, const char** name) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    const std::vector<Graph>& graphs = open.bundle().graphs();
    if (index < 0 || static_cast<size_t>(index) >= graphs.size()) {
      throw fail(MDRT_ERROR_ARGUMENT, "there is no component %d; the bundle has %zu", index, graphs.size());
    }
    required(name, "name") = graphs[static_cast<size_t>(index)].name.c_str();
  });
}

mdrt_status mdrt_get_input(mdrt_model* model, const char* component, int32_t index, mdrt_tensor* tensor) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    const Graph& graph = open.graph(&required(component, "component"));
    required(tensor, "tensor");
    if (index < 0 || static_cast<size_t>(index) >= graph.inputs.size()) {
      throw fail(MDRT_ERROR_ARGUMENT, "%s has no input %d; it has %zu", graph.name.c_str(), index, graph.inputs.size());
    }
    const GraphInput& input = graph.inputs[static_cast<size_t>(index)];
    Shape shape;
    for (const Dimension& dimension : input.shape) shape.push_back(dimension.size);
    describe(tensor, input.name, input.dtype, shape);
  });
}

mdrt_status mdrt_get_output(mdrt_model* model, const char* component, int32_t index, mdrt_tensor* tensor) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    const Graph& graph = open.graph(&required(component, "component"));
    required(tensor, "tensor");
    if (index < 0 || static_cast<size_t>(index) >= graph.outputs.size()) {
      throw fail(MDRT_ERROR_ARGUMENT, "%s has no output %d; it has %zu", graph.name.c_str(), index,
                 graph.outputs.size());
    }
    const size_t i = static_cast<size_t>(index);
    describe(tensor, graph.outputs[i].name, DType::fp32,
             known_shapes(graph)[static_cast<size_t>(graph.outputs[i].value)]);
  });
}

mdrt_status mdrt_run(mdrt_model* model, const char* component, const mdrt_tensor* inputs, int32_t num_inputs,
                     mdrt_tensor* outputs, int32_t num_outputs) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  Handle& handle = *model->handle;
  return with_model(model->handle, [&](Model& open) {
    refuse_beside_job(handle);
    handle.cancel = false;
    run_component(open, {&handle.cancel, handle.poll, handle.poll_user}, &required(component, "component"), inputs,
                  num_inputs, outputs, num_outputs);
  });
}

mdrt_status mdrt_begin(mdrt_model* model, const mdrt_generate_params* params, mdrt_job** job) {
  if (job) *job = nullptr;
  if (!model) return MDRT_ERROR_ARGUMENT;
  return with_model(model->handle, [&](Model& open) {
    required(job, "job");
    check_params(params);
    refuse_beside_job(*model->handle);
    model->handle->cancel = false;
    auto begun = std::make_unique<mdrt_job>();
    begun->handle = model->handle;
    begun->job = std::make_unique<Job>(open, *params);
    *job = model->handle->unfinished_job = begun.release();
  });
}

mdrt_status mdrt_advance(mdrt_job* job, mdrt_event* event) {
  if (!job) return MDRT_ERROR_ARGUMENT;
  Handle& handle = *job->handle;
  return with_model(job->handle, [&](Model& open) {
    mdrt_event& reached = required(event, "event");
    if (job->failed || job->job->done()) {
      throw Error(MDRT_ERROR_STATE,
                  job->failed ? "the job failed or was cancelled; begin a new one" : "the job is already done");
    }
    try {
      reached = job->job->advance(handle.cancel);
    } catch (...) {
      job->failed = true;
      handle.unfinished_job = nullptr;
      open.release_memory(nullptr);
      throw;
    }
    if (job->job->done()) handle.unfinished_job = nullptr;
  });
}

mdrt_status mdrt_get_pixels(mdrt_job* job, uint8_t* pixels, size_t stride_bytes) {
  return with_job(job, [&] { copy_pixels(finished_job(*job), pixels, stride_bytes); });
}

mdrt_status mdrt_get_latents(mdrt_job* job, float* latents, size_t count) {
  return with_job(job, [&] {
    required(latents, "latents");
    const Job& done = finished_job(*job);
    const std::array<int64_t, 4> shape = done.latents_shape();
    const int64_t needed = shape[0] * shape[1] * shape[2] * shape[3];
    if (count != static_cast<size_t>(needed)) {
      throw fail(MDRT_ERROR_ARGUMENT, "count is %zu, but the latent has %lld floats", count,
                 static_cast<long long>(needed));
    }
    done.copy_latents(latents);
  });
}

mdrt_status mdrt_get_latents_shape(mdrt_job* job, int64_t shape[4]) {
  return with_job(job, [&] {
    required(shape, "shape");
    const std::array<int64_t, 4> found = job->job->latents_shape();
    std::copy(found.begin(), found.end(), shape);
  });
}

void mdrt_end(mdrt_job* job) {
  if (!job) return;
  const std::shared_ptr<Handle> handle = job->handle;
  const auto drop = [&] {
    if (handle->unfinished_job == job) {
      handle->unfinished_job = nullptr;
      if (handle->model) handle->model->release_memory(nullptr);
    }
    delete job;
  };
  // A callback may end another, finished job: then this thread holds the lock already.
  if (handle->owner.load() == std::this_thread::get_id()) return drop();
  HandleLock lock(*handle);
  drop();
}

mdrt_status mdrt_generate(mdrt_model* model, const mdrt_generate_params* params, mdrt_callback callback, void* user,
                          uint8_t* pixels, size_t stride_bytes) {
  if (!model) return MDRT_ERROR_ARGUMENT;
  Handle& handle = *model->handle;
  return with_model(model->handle, [&](Model& open) {
    check_params(params);
    required(pixels, "pixels");
    if (params->latent_only)
      throw Error(MDRT_ERROR_ARGUMENT, "latent_only gives no picture; use mdrt_begin and mdrt_get_latents");
    refuse_beside_job(handle);
    handle.cancel = false;
    try {
      Job job(open, *params);
      check_stride(job, stride_bytes);
      while (!job.done()) {
        const mdrt_event event = job.advance(handle.cancel);
        if (callback && callback(&event, user) != 0) throw Error(MDRT_ERROR_CANCELLED, "cancelled by the callback");
      }
      copy_pixels(job, pixels, stride_bytes);
    } catch (...) {
      open.release_memory(nullptr);
      throw;
    }
  });
}
