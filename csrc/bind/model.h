// Python's view of an open model and of a running job. No exception but error_already_set and those of errors.py leaves it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "internal.h"

namespace mdrt::bind {

namespace py = pybind11;

// Raises the exception of mdrt/errors.py that belongs to `status`.
[[noreturn]] void raise_status(mdrt_status status, const std::string& message);
void check(mdrt_status status, const char* errbuf);

py::dtype numpy_dtype(const std::string& name);    // "fp32" -> float32, ...

// The library's handle, the lock that makes a second caller wait, and what keeps the bytes alive.
struct Handle {
  mdrt_model* model = nullptr;
  std::mutex mutex;
  std::atomic<unsigned long> owner{0};    // Python's identifier of the thread that holds the mutex
  std::atomic<int> process{0};            // and its process
  py::object buffer;                      // the memory of a bundle that was not opened from a file
  ~Handle();
  // The thread that holds the mutex was left behind by fork(): it will never be free in this process.
  bool is_abandoned() const;
};
using HandlePointer = std::shared_ptr<Handle>;

// Runs `call` without the GIL and under the handle's lock; raises what it returns.
template <typename Call>
void run_unlocked(const HandlePointer& handle, Call call);

class Model {
 public:
  Model(const py::object& path, int threads, int64_t max_memory);
  static std::unique_ptr<Model> from_buffer(const py::buffer& buffer, int threads, int64_t max_memory);

  std::string metadata() const;
  py::list tensors() const;
  py::list components() const;
  py::list signature(const std::string& component, bool inputs) const;
  py::dict run(const std::string& component, const py::dict& feeds, const std::vector<std::string>& outputs) const;
  py::list tokenize(const std::string& text, bool padded) const;
  std::string describe_plan(const std::string& component, const py::dict& feeds) const;
  py::list profile(const std::string& component, const py::dict& feeds, int rounds) const;
  void set_plan_options(const std::string& isa, bool fuse) const;
  void verify() const;
  void cancel() const;
  void close() { handle_.reset(); }
  py::tuple size() const;
  py::list schedules() const;

  HandlePointer handle() const;    // raises when closed

 private:
  explicit Model(HandlePointer handle) : handle_(std::move(handle)) {}
  HandlePointer handle_;
};

class Job {
 public:
  struct Options {
    std::string prompt, negative_prompt;
    int width, height, num_inference_steps;
    double guidance_scale;
    uint64_t seed;
    py::object latents, schedule;    // arrays or None
    double init_noise_sigma;
    bool latent_only;
  };
  Job(const Model& model, const Options& options);
  ~Job() { close(); }
  Job(const Job&) = delete;

  py::tuple advance();    // stage, step, total, fraction
  py::array pixels();
  py::array latents();
  void close();

 private:
  mdrt_job* job() const;
  HandlePointer handle_;
  mdrt_job* job_ = nullptr;
  int32_t width_ = 0, height_ = 0;
  py::object latents_, schedule_;    // read by the library while the job lives
};

}  // namespace mdrt::bind
