// mdrt._core: the library for Python. Knows no op, no scheduler and no kernel.
#include <pybind11/stl.h>

#include "bind/model.h"

namespace mdrt::bind {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Shape = std::vector<int64_t>;

constexpr int32_t kMaxRank = 6;

py::object parse_json(const char* text) { return py::module_::import("json").attr("loads")(text); }

void check_rank(size_t rank) {
  if (rank < 1 || rank > kMaxRank) raise_status(MDRT_ERROR_ARGUMENT, "a weight has 1 to 6 dimensions");
}

Shape stored_shape(const std::string& kind, const std::string& format, const Shape& shape) {
  check_rank(shape.size());
  char errbuf[512] = "";
  int64_t stored[kMaxRank] = {};
  int32_t rank = 0;
  check(mdrt_internal()->stored_shape(kind.c_str(), format.c_str(), shape.data(), static_cast<int32_t>(shape.size()), stored,
                                      &rank, errbuf, sizeof errbuf),
        errbuf);
  return Shape(stored, stored + rank);
}

py::array pack(const std::string& kind, const std::string& format, const Floats& weight) {
  const Shape shape(weight.shape(), weight.shape() + weight.ndim());
  const Shape stored = stored_shape(kind, format, shape);
  py::array packed(numpy_dtype(format), std::vector<py::ssize_t>(stored.begin(), stored.end()));
  const float* source = weight.data();
  void* destination = packed.mutable_data();
  const size_t size_bytes = static_cast<size_t>(packed.nbytes());
  char errbuf[512] = "";
  mdrt_status status;
  {
    py::gil_scoped_release release;
    status = mdrt_internal()->pack(kind.c_str(), format.c_str(), source, shape.data(), static_cast<int32_t>(shape.size()),
                                   destination, size_bytes, errbuf, sizeof errbuf);
  }
  check(status, errbuf);
  return packed;
}

py::array unpack(const std::string& kind, const std::string& format, const py::array& stored, const Shape& shape) {
  check_rank(shape.size());
  const py::array dense = py::array::ensure(stored, py::array::c_style);
  if (!dense) throw py::error_already_set();
  char errbuf[512] = "";
  stored_shape(kind, format, shape);    // refuses impossible shapes before the array is made
  py::array_t<float> weight(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  const void* source = dense.data();
  float* destination = weight.mutable_data();
  const size_t size_bytes = static_cast<size_t>(dense.nbytes());
  mdrt_status status;
  {
    py::gil_scoped_release release;
    status = mdrt_internal()->unpack(kind.c_str(), format.c_str(), source, size_bytes, shape.data(),
                                     static_cast<int32_t>(shape.size()), destination, errbuf, sizeof errbuf);
  }
  check(status, errbuf);
  return weight;
}

uint32_t crc32c(const py::buffer& data, uint32_t crc) {
  const py::buffer_info info = data.request();
  py::ssize_t stride = info.itemsize;
  for (py::ssize_t d = info.ndim; d-- > 0; stride *= info.shape[static_cast<size_t>(d)]) {
    if (info.shape[static_cast<size_t>(d)] > 1 && info.strides[static_cast<size_t>(d)] != stride) {
      raise_status(MDRT_ERROR_ARGUMENT, "crc32c: the bytes must be contiguous");
    }
  }
  py::gil_scoped_release release;
  return mdrt_internal()->crc32c(crc, info.ptr, static_cast<size_t>(info.size * info.itemsize));
}

py::array_t<float> philox_normal(uint64_t seed, uint32_t offset, py::ssize_t count) {
  if (count < 0) raise_status(MDRT_ERROR_ARGUMENT, "philox_normal: count must not be negative");
  py::array_t<float> values(count);
  float* data = values.mutable_data();
  py::gil_scoped_release release;
  mdrt_internal()->philox_normal(seed, offset, count, data);
  return values;
}

void validate_graph(const py::object& document) {
  const std::string json = py::cast<std::string>(py::module_::import("json").attr("dumps")(document));
  char errbuf[512] = "";
  check(mdrt_internal()->validate_graph(json.data(), json.size(), errbuf, sizeof errbuf), errbuf);
}

double measure_peak(const std::string& what, const std::string& isa, int threads, int passes) {
  double per_second = 0;
  char errbuf[512] = "";
  mdrt_status status;
  {
    py::gil_scoped_release release;
    status = mdrt_internal()->measure_peak(what.c_str(), isa.c_str(), threads, passes, &per_second, errbuf, sizeof errbuf);
  }
  check(status, errbuf);
  return per_second;
}

void define_model(py::module_& m) {
  py::class_<Model>(m, "Model")
      .def(py::init<const py::object&, int, int64_t>(), py::arg("path"), py::kw_only(), py::arg("threads") = 0,
           py::arg("max_memory") = 0)
      .def_static("from_buffer", &Model::from_buffer, py::arg("buffer"), py::kw_only(), py::arg("threads") = 0,
                  py::arg("max_memory") = 0)
      .def("metadata", &Model::metadata)
      .def("tensors", &Model::tensors)
      .def("components", &Model::components)
      .def("inputs", [](const Model& model, const std::string& component) { return model.signature(component, true); },
           py::arg("component"))
      .def("outputs", [](const Model& model, const std::string& component) { return model.signature(component, false); },
           py::arg("component"))
      .def("run", &Model::run, py::arg("component"), py::arg("feeds"), py::arg("outputs"))
      .def("tokenize", &Model::tokenize, py::arg("text"), py::arg("padded") = true)
      .def("describe_plan", &Model::describe_plan, py::arg("component"), py::arg("feeds"))
      .def("profile", &Model::profile, py::arg("component"), py::arg("feeds"), py::arg("rounds"))
      .def("set_plan_options", &Model::set_plan_options, py::arg("isa") = "", py::arg("fuse") = true)
      .def("verify", &Model::verify)
      .def("cancel", &Model::cancel)
      .def("close", &Model::close)
      .def("size", &Model::size)
      .def("schedules", &Model::schedules);
}

void define_job(py::module_& m) {
  py::class_<Job>(m, "Job")
      .def(py::init([](const Model& model, const std::string& prompt, const std::string& negative_prompt, int width, int height,
                       int num_inference_steps, double guidance_scale, uint64_t seed, const py::object& latents,
                       const py::object& schedule, double init_noise_sigma, bool latent_only) {
             return std::make_unique<Job>(
                 model, Job::Options{prompt, negative_prompt, width, height, num_inference_steps, guidance_scale, seed, latents,
                                     schedule, init_noise_sigma, latent_only});
           }),
           py::arg("model"), py::arg("prompt"), py::kw_only(), py::arg("negative_prompt") = "", py::arg("width") = 0,
           py::arg("height") = 0, py::arg("num_inference_steps") = 0, py::arg("guidance_scale") = Py_NAN, py::arg("seed") = 0,
           py::arg("latents") = py::none(), py::arg("schedule") = py::none(), py::arg("init_noise_sigma") = 1.0,
           py::arg("latent_only") = false)
      .def("advance", &Job::advance)
      .def("pixels", &Job::pixels)
      .def("latents", &Job::latents)
      .def("close", &Job::close);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled part of mdrt. Private: use the package's own names.";
  m.def("version", [] { return mdrt_version(); });
  m.def("op_table", [] { return parse_json(mdrt_internal()->op_table_json()); });
  m.def("build_info", [] { return parse_json(mdrt_internal()->build_json()); });
  m.def("validate_graph", &validate_graph, py::arg("document"));
  m.def("stored_shape",
        [](const std::string& kind, const std::string& format, const Shape& shape) {
          return py::tuple(py::cast(stored_shape(kind, format, shape)));
        },
        py::arg("kind"), py::arg("format"), py::arg("shape"));
  m.def("pack", &pack, py::arg("kind"), py::arg("format"), py::arg("weight"));
  m.def("unpack", &unpack, py::arg("kind"), py::arg("format"), py::arg("stored"), py::arg("shape"));
  m.def("crc32c", &crc32c, py::arg("data"), py::arg("crc") = 0);
  m.def("philox_normal", &philox_normal, py::arg("seed"), py::arg("offset"), py::arg("count"));
  m.def("measure_peak", &measure_peak, py::arg("what"), py::arg("isa") = "", py::arg("threads") = 0, py::arg("passes") = 30);
  define_model(m);
  define_job(m);
}

}  // namespace mdrt::bind
