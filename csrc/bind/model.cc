#include "bind/model.h"

#include <unistd.h>

#include <cstring>
#include <limits>

namespace mdrt::bind {
namespace {

constexpr size_t kErrorBytes = 1024;
constexpr uintptr_t kBundleAlignment = 64;

// Python's signal handlers only set a flag; this runs them while a kernel call is under way.
int poll_signals(void*) {
  const PyGILState_STATE state = PyGILState_Ensure();
  const int interrupted = PyErr_CheckSignals();
  PyGILState_Release(state);
  return interrupted;
}

mdrt_options make_options(int threads, int64_t max_memory) {
  mdrt_options options;
  mdrt_options_init(&options);
  options.threads = threads;
  options.max_memory_bytes = max_memory;
  return options;
}

HandlePointer adopt(mdrt_model* model) {
  auto handle = std::make_shared<Handle>();
  handle->model = model;
  if (mdrt_internal()->set_poll) mdrt_internal()->set_poll(model, poll_signals, nullptr);
  return handle;
}

// Names, shapes and data of arrays in the form that mdrt_run takes; owns what the tensors point to.
struct Feeds {
  std::vector<std::string> names;
  std::vector<py::array> arrays;
  std::vector<mdrt_tensor> tensors;
};

mdrt_tensor empty_tensor(const char* name) {
  mdrt_tensor tensor;
  std::memset(&tensor, 0, sizeof tensor);
  tensor.name = name;
  return tensor;
}

Feeds make_feeds(const py::dict& feeds) {
  Feeds result;
  for (const auto& item : feeds) {
    result.names.push_back(py::cast<std::string>(item.first));
    result.arrays.push_back(py::array::ensure(item.second, py::array::c_style));
    if (!result.arrays.back()) throw py::error_already_set();
  }
  for (size_t i = 0; i < result.names.size(); ++i) {
    const py::array& array = result.arrays[i];
    mdrt_tensor tensor = empty_tensor(result.names[i].c_str());
    if (array.dtype().is(py::dtype::of<float>())) {
      tensor.dtype = MDRT_FP32;
    } else if (array.dtype().is(py::dtype::of<int32_t>())) {
      tensor.dtype = MDRT_INT32;
    } else {
      raise_status(MDRT_ERROR_ARGUMENT, result.names[i] + ": the dtype must be float32 or int32, not " +
                                            py::cast<std::string>(py::str(array.dtype())));
    }
    if (array.ndim() < 1 || array.ndim() > 6) {
      raise_status(MDRT_ERROR_ARGUMENT, result.names[i] + ": an array of 1 to 6 dimensions is needed, not of " +
                                            std::to_string(array.ndim()));
    }
    tensor.rank = static_cast<int32_t>(array.ndim());
    for (py::ssize_t d = 0; d < array.ndim(); ++d) tensor.shape[d] = array.shape(d);
    tensor.data = const_cast<void*>(array.data());
    tensor.size_bytes = static_cast<size_t>(array.nbytes());
    result.tensors.push_back(tensor);
  }
  return result;
}

py::tuple shape_tuple(const int64_t* shape, int32_t rank) {
  py::tuple result(static_cast<size_t>(rank));
  for (int32_t d = 0; d < rank; ++d) result[static_cast<size_t>(d)] = shape[d];
  return result;
}

}  // namespace

void raise_status(mdrt_status status, const std::string& message) {
  const py::object text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message.data(), static_cast<py::ssize_t>(message.size()), "replace"));
  const py::object error = py::module_::import("mdrt.errors").attr("from_status")(static_cast<int>(status), text);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

void check(mdrt_status status, const char* errbuf) {
  if (status != MDRT_OK) raise_status(status, *errbuf ? errbuf : mdrt_status_string(status));
}

py::dtype numpy_dtype(const std::string& name) {
  if (name == "fp32") return py::dtype("float32");
  if (name == "fp16") return py::dtype("float16");
  if (name == "fp64") return py::dtype("float64");
  return py::dtype(name);
}

bool Handle::is_abandoned() const { return owner.load() != 0 && process.load() != getpid(); }

Handle::~Handle() {
  if (model && !is_abandoned()) mdrt_close(model);
}

template <typename Call>
void run_unlocked(const HandlePointer& handle, Call call) {
  const unsigned long thread = PyThread_get_thread_ident();
  if (handle->owner.load() == thread) {
    raise_status(MDRT_ERROR_STATE, "this model is in use by the same thread: a signal handler or callback cannot call it");
  }
  if (handle->is_abandoned()) {
    raise_status(MDRT_ERROR_STATE, "this process was forked while another thread used the model; open it again here");
  }
  mdrt_status status;
  std::string message;
  {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(handle->mutex);
    handle->process.store(getpid());
    handle->owner.store(thread);
    status = call();
    if (status != MDRT_OK) message = mdrt_error_message(handle->model);
    handle->owner.store(0);
  }
  if (PyErr_Occurred()) throw py::error_already_set();    // raised by a signal handler inside poll_signals
  check(status, message.c_str());
}

Model::Model(const py::object& path, int threads, int64_t max_memory) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) throw py::error_already_set();
  const py::bytes bytes = py::reinterpret_steal<py::bytes>(encoded);
  const std::string name = bytes;
  const mdrt_options options = make_options(threads, max_memory);
  mdrt_model* model = nullptr;
  char errbuf[kErrorBytes] = "";
  mdrt_status status;
  {
    py::gil_scoped_release release;
    status = mdrt_open(name.c_str(), &options, &model, errbuf, sizeof errbuf);
  }
  check(status, errbuf);
  handle_ = adopt(model);
}

std::unique_ptr<Model> Model::from_buffer(const py::buffer& buffer, int threads, int64_t max_memory) {
  py::object owner = py::array::ensure(py::module_::import("numpy").attr("frombuffer")(buffer, "uint8"));
  py::buffer_info view = py::buffer(owner).request();
  if (reinterpret_cast<uintptr_t>(view.ptr) % kBundleAlignment != 0) {
    py::array_t<uint8_t> block(view.size + static_cast<py::ssize_t>(kBundleAlignment));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(block.data());
    const size_t skip = (kBundleAlignment - begin % kBundleAlignment) % kBundleAlignment;
    std::memcpy(block.mutable_data() + skip, view.ptr, static_cast<size_t>(view.size));
    owner = block[py::slice(static_cast<py::ssize_t>(skip), static_cast<py::ssize_t>(skip) + view.size, 1)];
    view = py::buffer(owner).request();
  }
  const mdrt_options options = make_options(threads, max_memory);
  mdrt_model* model = nullptr;
  char errbuf[kErrorBytes] = "";
  mdrt_status status;
  {
    py::gil_scoped_release release;
    status = mdrt_open_memory(view.ptr, static_cast<size_t>(view.size), &options, &model, errbuf, sizeof errbuf);
  }
  check(status, errbuf);
  HandlePointer handle = adopt(model);
  handle->buffer = owner;
  return std::unique_ptr<Model>(new Model(std::move(handle)));
}

HandlePointer Model::handle() const {
  if (!handle_) raise_status(MDRT_ERROR_STATE, "the model is closed; open it again");
  return handle_;
}

std::string Model::metadata() const { return mdrt_internal()->metadata(handle()->model); }

py::list Model::tensors() const {
  const HandlePointer held = handle();
  py::list result;
  const int32_t count = mdrt_internal()->tensor_count(held->model);
  for (int32_t i = 0; i < count; ++i) {
    const char *name = nullptr, *dtype = nullptr;
    const void* data = nullptr;
    int64_t shape[6] = {};
    int32_t rank = 0;
    size_t size_bytes = 0;
    check(mdrt_internal()->tensor(held->model, i, &name, &dtype, shape, &rank, &data, &size_bytes), "");
    const py::capsule keep(new HandlePointer(held), [](void* p) { delete static_cast<HandlePointer*>(p); });
    py::array array(numpy_dtype(dtype), std::vector<py::ssize_t>(shape, shape + rank), data, keep);
    array.attr("flags").attr("writeable") = false;
    result.append(py::make_tuple(name, dtype, shape_tuple(shape, rank), array));
  }
  return result;
}

py::list Model::components() const {
  const HandlePointer held = handle();
  int32_t count = 0;
  run_unlocked(held, [&] { return mdrt_get_component_count(held->model, &count); });
  py::list result;
  for (int32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    run_unlocked(held, [&] { return mdrt_get_component_name(held->model, i, &name); });
    result.append(py::str(name));
  }
  return result;
}

py::list Model::signature(const std::string& component, bool inputs) const {
  const HandlePointer held = handle();
  py::list result;
  for (int32_t i = 0;; ++i) {
    mdrt_tensor tensor = empty_tensor(nullptr);
    bool end = false;
    run_unlocked(held, [&] {
      const mdrt_status status = inputs ? mdrt_get_input(held->model, component.c_str(), i, &tensor)
                                        : mdrt_get_output(held->model, component.c_str(), i, &tensor);
      end = i > 0 && status == MDRT_ERROR_ARGUMENT;    // one past the last
      return end ? MDRT_OK : status;
    });
    if (end) return result;
    result.append(py::make_tuple(tensor.name, tensor.dtype == MDRT_FP32 ? "fp32" : "int32",
                                 shape_tuple(tensor.shape, tensor.rank)));
  }
}

py::dict Model::run(const std::string& component, const py::dict& feeds, const std::vector<std::string>& outputs) const {
  const HandlePointer held = handle();
  const Feeds inputs = make_feeds(feeds);
  const int32_t num_inputs = static_cast<int32_t>(inputs.tensors.size());
  const int32_t num_outputs = static_cast<int32_t>(outputs.size());
  std::vector<mdrt_tensor> wanted;
  for (const std::string& name : outputs) wanted.push_back(empty_tensor(name.c_str()));
  const auto call = [&] {
    return mdrt_run(held->model, component.c_str(), inputs.tensors.data(), num_inputs, wanted.data(), num_outputs);
  };
  run_unlocked(held, call);    // shapes only: every data is NULL
  py::dict result;
  for (mdrt_tensor& tensor : wanted) {
    py::array_t<float> array(std::vector<py::ssize_t>(tensor.shape, tensor.shape + tensor.rank));
    tensor.data = array.mutable_data();
    tensor.size_bytes = static_cast<size_t>(array.nbytes());
    result[tensor.name] = array;
  }
  if (num_outputs > 0) run_unlocked(held, call);
  return result;
}

py::list Model::tokenize(const std::string& text, bool padded) const {
  const HandlePointer held = handle();
  std::vector<int32_t> ids(text.size() + 1024);
  size_t count = 0;
  const auto call = [&] {
    return mdrt_internal()->tokenize(held->model, text.data(), text.size(), padded, ids.data(), ids.size(), &count);
  };
  run_unlocked(held, call);
  if (count > ids.size()) {
    ids.resize(count);
    run_unlocked(held, call);
  }
  py::list result;
  for (size_t i = 0; i < count; ++i) result.append(ids[i]);
  return result;
}

std::string Model::describe_plan(const std::string& component, const py::dict& feeds) const {
  const HandlePointer held = handle();
  const Feeds inputs = make_feeds(feeds);
  char* text = nullptr;
  run_unlocked(held, [&] {
    return mdrt_internal()->describe_plan(held->model, component.c_str(), inputs.tensors.data(),
                                          static_cast<int32_t>(inputs.tensors.size()), &text);
  });
  std::string result = text;
  mdrt_internal()->free_text(text);
  return result;
}

py::list Model::profile(const std::string& component, const py::dict& feeds, int rounds) const {
  struct Seen {
    std::string name;
    int32_t node;
    int64_t tasks, macs;
    std::vector<double> seconds;
  };
  struct Visit {
    std::vector<Seen> steps;
    size_t rounds;
  };
  const HandlePointer held = handle();
  const Feeds inputs = make_feeds(feeds);
  Visit visit = {{}, static_cast<size_t>(rounds)};
  run_unlocked(held, [&] {
    return mdrt_internal()->profile(
        held->model, component.c_str(), inputs.tensors.data(), static_cast<int32_t>(inputs.tensors.size()), rounds,
        [](const mdrt_profiled_step* step, void* user) {
          Visit& into = *static_cast<Visit*>(user);
          into.steps.push_back({step->name, step->node, step->tasks, step->macs, {step->seconds, step->seconds + into.rounds}});
        },
        &visit);
  });
  py::list result;
  for (const Seen& step : visit.steps) {
    py::list seconds;
    for (double value : step.seconds) seconds.append(value);
    result.append(py::make_tuple(step.name, step.node, step.tasks, step.macs, seconds));
  }
  return result;
}

void Model::set_plan_options(const std::string& isa, bool fuse) const {
  const HandlePointer held = handle();
  run_unlocked(held, [&] { return mdrt_internal()->set_plan_options(held->model, isa.c_str(), fuse); });
}

void Model::verify() const {
  const HandlePointer held = handle();
  run_unlocked(held, [&] { return mdrt_verify(held->model); });
}

void Model::cancel() const {
  if (handle_) mdrt_cancel(handle_->model);
}

py::tuple Model::size() const {
  const HandlePointer held = handle();
  int32_t width = 0, height = 0;
  run_unlocked(held, [&] { return mdrt_get_size(held->model, &width, &height); });
  return py::make_tuple(width, height);
}

py::list Model::schedules() const {
  const HandlePointer held = handle();
  int32_t count = 0;
  run_unlocked(held, [&] { return mdrt_get_schedule_count(held->model, &count); });
  py::list result;
  for (int32_t i = 0; i < count; ++i) {
    int32_t steps = 0;
    double guidance_scale = 0;
    const char* scheduler = nullptr;
    run_unlocked(held, [&] { return mdrt_get_schedule(held->model, i, &steps, &guidance_scale, &scheduler); });
    result.append(py::make_tuple(steps, guidance_scale, scheduler));
  }
  return result;
}

Job::Job(const Model& model, const Options& options) : handle_(model.handle()) {
  mdrt_generate_params params;
  mdrt_generate_params_init(&params);
  if (options.prompt.find('\0') != std::string::npos || options.negative_prompt.find('\0') != std::string::npos) {
    raise_status(MDRT_ERROR_ARGUMENT, "the prompt holds a NUL character; remove it");
  }
  params.prompt = options.prompt.c_str();
  params.negative_prompt = options.negative_prompt.c_str();
  run_unlocked(handle_, [&] { return mdrt_get_size(handle_->model, &width_, &height_); });
  if (options.width) width_ = options.width;
  if (options.height) height_ = options.height;
  params.width = width_;
  params.height = height_;
  params.num_inference_steps = options.num_inference_steps;
  params.guidance_scale = options.guidance_scale;
  params.seed = options.seed;
  params.latent_only = options.latent_only;
  if (!options.latents.is_none()) {
    latents_ = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(options.latents);
    if (!latents_) throw py::error_already_set();
    params.latents = static_cast<const float*>(py::array(latents_).data());
  }
  if (!options.schedule.is_none()) {
    const auto rows = py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(options.schedule);
    constexpr py::ssize_t kColumns = sizeof(mdrt_schedule_row) / sizeof(double);
    if (!rows || rows.ndim() != 2 || rows.shape(1) != kColumns || rows.shape(0) > std::numeric_limits<int32_t>::max()) {
      raise_status(MDRT_ERROR_ARGUMENT, "schedule: rows of 14 numbers are needed (t p q clip a b e c1 c2 c3 d keep m n)");
    }
    schedule_ = rows;
    params.schedule = reinterpret_cast<const mdrt_schedule_row*>(rows.data());
    params.schedule_rows = static_cast<int32_t>(rows.shape(0));
    params.init_noise_sigma = options.init_noise_sigma;
  }
  run_unlocked(handle_, [&] { return mdrt_begin(handle_->model, &params, &job_); });
}

mdrt_job* Job::job() const {
  if (!job_) raise_status(MDRT_ERROR_STATE, "the job is closed");
  return job_;
}

py::tuple Job::advance() {
  mdrt_job* running = job();
  mdrt_event event;
  run_unlocked(handle_, [&] { return mdrt_advance(running, &event); });
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  return py::make_tuple(static_cast<int>(event.stage), event.step, event.total, event.fraction);
}

py::array Job::pixels() {
  mdrt_job* running = job();
  py::array_t<uint8_t> pixels({static_cast<py::ssize_t>(height_), static_cast<py::ssize_t>(width_), py::ssize_t{3}});
  uint8_t* data = pixels.mutable_data();
  run_unlocked(handle_, [&] { return mdrt_get_pixels(running, data, static_cast<size_t>(width_) * 3); });
  return pixels;
}

py::array Job::latents() {
  mdrt_job* running = job();
  int64_t shape[4];
  run_unlocked(handle_, [&] { return mdrt_get_latents_shape(running, shape); });
  py::array_t<float> latents(std::vector<py::ssize_t>(shape, shape + 4));
  float* data = latents.mutable_data();
  run_unlocked(handle_, [&] { return mdrt_get_latents(running, data, static_cast<size_t>(latents.size())); });
  return latents;
}

void Job::close() {
  if (!job_ || handle_->is_abandoned()) return;
  mdrt_job* ended = job_;
  job_ = nullptr;
  py::gil_scoped_release release;
  std::lock_guard<std::mutex> lock(handle_->mutex);
  mdrt_end(ended);
}

}  // namespace mdrt::bind
