#include "bundle.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "crc32c.h"
#include "document.h"
#include "json.h"
#include "ops.h"
#include "quantised.h"

namespace mdrt {
namespace {

using Type = Json::Type;
using Value = Json::Value;

constexpr int kFormatMajor = 1, kFormatMinor = 2;
constexpr int64_t kMaxHeaderBytes = 4 << 20;
constexpr uint32_t kMaxTensors = 16384;
constexpr int kMaxDepth = 16;
constexpr int64_t kAlignment = 64;

[[noreturn]] void refuse(const std::string& what) { throw Error(MDRT_ERROR_BUNDLE, what); }

// What people hand over by mistake, recognised by its first bytes.
void refuse_other_files(std::string_view head) {
  const auto begins = [&](std::string_view magic) { return head.substr(0, magic.size()) == magic; };
  if (head.empty()) refuse("the file is empty");
  if (begins("version https://git-lfs"))
    refuse("this is a Git LFS pointer, not the model itself; fetch it with git lfs pull");
  if (begins("\x1f\x8b")) refuse("this is a gzip archive; unpack it first");
  if (begins("PK\x03\x04")) refuse("this is a zip archive or a PyTorch checkpoint; make a bundle with mdrt convert");
  if (begins("GGUF")) refuse("this is a GGUF file; make a bundle from the diffusers checkpoint with mdrt convert");
  const size_t text = head.find_first_not_of(" \t\r\n");
  if (text != std::string_view::npos && head[text] == '<')
    refuse("this is an HTML or XML page, not a model; the download address was probably wrong");
}

DType parse_dtype(std::string_view text, const std::string& where) {
  static constexpr std::pair<std::string_view, DType> kNames[] = {{"F32", DType::fp32}, {"F16", DType::fp16}, {"I8", DType::int8},
                                                                  {"I32", DType::int32}, {"U8", DType::uint8}, {"F64", DType::fp64}};
  for (const auto& [name, dtype] : kNames)
    if (text == name) return dtype;
  refuse(where + "dtype '" + printable(text) + "' is not one of F32 F16 I8 I32 U8 F64");
}

uint32_t parse_crc(Value value, const std::string& where) {
  uint32_t crc = 0;
  const std::string_view text = value.type() == Type::string ? value.string() : "";
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) refuse(where + "must be eight lower-case hexadecimal digits");
    crc = crc << 4 | static_cast<uint32_t>(digit ? c - '0' : c - 'a' + 10);
  }
  if (text.size() != 8) refuse(where + "must be eight lower-case hexadecimal digits");
  return crc;
}

uint32_t load32(const std::byte* at) {
  uint32_t word;
  memcpy(&word, at, 4);
  return word;
}

}  // namespace

// Fills in a Bundle whose bytes are in place.
class BundleParser {
 public:
  explicit BundleParser(Bundle& bundle) : bundle_(bundle) {}

  void parse() {
    find_header();
    {
      const std::string_view text(reinterpret_cast<const char*>(bundle_.base_) + 8, header_text_bytes_);
      const Json header(text, kMaxDepth, "header");
      parse_header(header.root());
    }
    const Json document(bundle_.metadata_, kMaxDepth, "__metadata__.mdrt");
    parse_document(document.root());
  }

 private:
  void find_header() {
    const char* bytes = reinterpret_cast<const char*>(bundle_.base_);
    const int64_t size = bundle_.file_bytes_;
    refuse_other_files(std::string_view(bytes, static_cast<size_t>(std::min<int64_t>(size, 512))));
    if (size < 8) refuse("the file has " + std::to_string(size) + " bytes, too few for the header length");
    uint64_t length;
    memcpy(&length, bytes, 8);
    if (length > static_cast<uint64_t>(kMaxHeaderBytes - 8))
      refuse("header length " + std::to_string(length) + " exceeds 4 MiB; this is not a bundle, make one with mdrt convert");
    bundle_.header_bytes_ = static_cast<int64_t>(length) + 8;
    if (bundle_.header_bytes_ > size)
      refuse("truncated: the header length states " + std::to_string(bundle_.header_bytes_) + " bytes, the file has " + std::to_string(size));
    if (bundle_.header_bytes_ % kAlignment != 0)
      refuse("header length " + std::to_string(length) + ": the data would not begin at a multiple of 64; make a bundle with mdrt convert");
    if (length == 0 || bytes[8] != '{') refuse("header: does not begin with {; this is not a bundle");
    size_t end = static_cast<size_t>(length);
    while (bytes[8 + end - 1] == ' ') --end;
    if (bytes[8 + end - 1] != '}') refuse("header: must end with } and blanks");
    header_text_bytes_ = end;
  }

  void parse_header(Value root) {
    if (root.size() > kMaxTensors + 1) refuse("header: more than 16384 tensors");
    bundle_.tensors_.reserve(root.size());
    bool has_metadata = false;
    Value key = root.first();
    for (uint32_t i = 0; i < root.size(); ++i, key = key.value().next()) {
      if (key.string() == "__metadata__") {
        const std::string where = "__metadata__: ";
        bundle_.metadata_ = JsonFields(key.value(), where, {"mdrt"}).string("mdrt");
        has_metadata = true;
      } else {
        parse_tensor(key.string(), key.value());
      }
    }
    if (!has_metadata) refuse("header: __metadata__ is missing; this is a plain safetensors file, make a bundle with mdrt convert");
    const int64_t have = bundle_.file_bytes_ - bundle_.header_bytes_;
    if (data_bytes_ > have)
      refuse("truncated: data_offsets state " + std::to_string(data_bytes_ + bundle_.header_bytes_) + " bytes, the file has " +
             std::to_string(bundle_.file_bytes_));
    if (data_bytes_ < have)
      refuse("data_offsets end " + std::to_string(have - data_bytes_) + " bytes before the end of the file");
    check_header_crc();
  }

  void parse_tensor(std::string_view name, Value value) {
    if (!is_value_name(name))
      refuse("header: the tensor name '" + printable(name) + "' is not 1 to 256 bytes of [A-Za-z0-9._/-] without empty, . or .. parts");
    const std::string where = "tensor '" + std::string(name) + "': ";
    const JsonFields fields(value, where, {"dtype", "shape", "data_offsets"});
    StoredTensor tensor{};
    tensor.name = name;
    tensor.dtype = parse_dtype(fields.string("dtype"), where);

    const Value shape = fields.array("shape");
    if (shape.size() < 1 || shape.size() > 6) fields.refuse("shape", "must have 1 to 6 dimensions");
    int64_t bytes = dtype_bytes(tensor.dtype);
    Value item = shape.first();
    for (uint32_t i = 0; i < shape.size(); ++i, item = item.next()) {
      if (item.type() != Type::integer || item.integer() < 1) fields.refuse("shape", "must hold integers >= 1");
      if (__builtin_mul_overflow(bytes, item.integer(), &bytes)) fields.refuse("shape", "is larger than 63 bits can count");
      tensor.shape.push_back(item.integer());
    }

    const Value offsets = fields.array("data_offsets");
    if (offsets.size() != 2) fields.refuse("data_offsets", "must be two integers");
    const Value begin = offsets.first(), end = begin.next();
    if (begin.type() != Type::integer || end.type() != Type::integer) fields.refuse("data_offsets", "must be two integers");
    if (begin.integer() < 0 || end.integer() < begin.integer()) fields.refuse("data_offsets", "must be 0 <= begin <= end");
    if (begin.integer() != data_bytes_)
      fields.refuse("data_offsets", "begin at " + std::to_string(begin.integer()) + ", but the tensors before end at " +
                                        std::to_string(data_bytes_));
    if (end.integer() - begin.integer() != bytes)
      fields.refuse("data_offsets", "hold " + std::to_string(end.integer() - begin.integer()) + " bytes, dtype and shape need " +
                                        std::to_string(bytes));
    if (bytes % kAlignment != 0) fields.refuse("data_offsets", "must hold a multiple of 64 bytes");
    if (end.integer() > INT64_MAX - bundle_.header_bytes_) fields.refuse("data_offsets", "exceed 63 bits");
    tensor.size_bytes = bytes;
    tensor.data = bundle_.base_ + bundle_.header_bytes_ + begin.integer();
    data_bytes_ = end.integer();
    bundle_.tensors_.push_back(std::move(tensor));
  }

  void check_header_crc() {
    const std::string where = "tensor 'header_crc32c': ";
    if (bundle_.tensors_.empty() || bundle_.tensors_[0].name != "header_crc32c") refuse(where + "must be the first tensor");
    StoredTensor& tensor = bundle_.tensors_[0];
    if (tensor.dtype != DType::uint8 || tensor.shape != std::vector<int64_t>{64}) refuse(where + "must be U8 of shape [64]");
    if (std::any_of(tensor.data + 4, tensor.data + 64, [](std::byte b) { return b != std::byte{0}; }))
      refuse(where + "the last 60 bytes must be zero");
  }

  void check_format(Value format) {
    if (format.type() != Type::array || format.size() != 2 || format.first().type() != Type::integer ||
        format.first().next().type() != Type::integer)
      refuse("format: must be two integers");
    const int64_t major = format.first().integer(), minor = format.first().next().integer();
    if (major < 1 || minor < 0) refuse("format: [" + std::to_string(major) + ", " + std::to_string(minor) + "] has never existed");
    if (major > kFormatMajor || minor > kFormatMinor)
      throw fail(MDRT_ERROR_VERSION,
                 "format: this bundle has format [%lld, %lld], this mdrt reads up to [%d, %d]; install the mdrt that brought "
                 "format [%lld, %lld], or a newer one",
                 static_cast<long long>(major), static_cast<long long>(minor), kFormatMajor, kFormatMinor,
                 static_cast<long long>(major), static_cast<long long>(minor));
    format_minor_ = minor;
  }

  void check_minor() {
    int least = 0;
    std::string cause;
    for (const Graph& graph : bundle_.graphs_)
      for (const Node& node : graph.nodes)
        if (const int needed = format_minor(node); needed > least) {
          least = needed;
          cause = "node '" + node.name + "' of component '" + graph.name + "' has int8 weights" + (needed > 1 ? " without weight_sum" : "");
        }
    if (least > format_minor_)
      refuse("format: is [1, " + std::to_string(format_minor_) + "], but " + cause + "; state [1, " + std::to_string(least) + "]");
  }

  void parse_document(Value root) {
    const std::string where = "__metadata__.mdrt: ";
    check_format(JsonFields(root, where, {"format"}, {"*"}).at("format"));
    const JsonFields fields(root, where, {"format", "components", "checksums", "provenance"}, {"pipeline", "tokenizer"});
    check_provenance(fields.at("provenance"));
    TensorIndex tensors(bundle_.tensors_);
    tensors.claim("header_crc32c", where);
    parse_checksums(fields.at("checksums"), tensors);

    const Value components = fields.at("components");
    if (components.type() != Type::object || components.size() == 0 || components.size() > 64)
      fields.refuse("components", "must be an object of 1 to 64 graphs");
    bundle_.graphs_.reserve(components.size());
    Value key = components.first();
    for (uint32_t i = 0; i < components.size(); ++i, key = key.value().next())
      bundle_.graphs_.push_back(parse_graph(key.string(), key.value(), tensors));
    check_minor();

    if (fields.has("tokenizer"))
      bundle_.tokenizer_ = std::make_unique<TokenizerInfo>(parse_tokenizer(fields.at("tokenizer"), tensors));
    if (fields.has("pipeline")) {
      bundle_.pipeline_ = std::make_unique<PipelineInfo>(parse_pipeline(fields.at("pipeline"), tensors));
      check_components(bundle_.graphs_, *bundle_.pipeline_);
      if (bundle_.tokenizer_ == nullptr) fields.refuse("tokenizer", "is missing; a bundle with a pipeline needs it");
    }
    tensors.check_all_claimed();
  }

  void check_provenance(Value value) {
    const std::string where = "provenance: ";
    const JsonFields fields(value, where, {"source", "license", "converter"});
    for (const char* key : {"source", "license", "converter"}) fields.string(key);
  }

  void parse_checksums(Value checksums, const TensorIndex& tensors) {
    if (checksums.type() != Type::object) refuse("checksums: must be an object");
    if (checksums.size() + 1 != bundle_.tensors_.size())
      refuse("checksums: must have one entry for every tensor but header_crc32c");
    Value key = checksums.first();
    for (uint32_t i = 0; i < checksums.size(); ++i, key = key.value().next()) {
      const int64_t index = tensors.find(key.string());
      const std::string where = "checksums: '" + printable(key.string()) + "' ";
      if (index <= 0) refuse(where + "is no tensor that has a checksum");
      bundle_.tensors_[static_cast<size_t>(index)].crc32c = parse_crc(key.value(), where);
    }
    bundle_.tensors_[0].crc32c = load32(bundle_.tensors_[0].data);
  }

  Bundle& bundle_;
  size_t header_text_bytes_ = 0;    // without the length in front and the blanks behind
  int64_t data_bytes_ = 0;          // where the tensors so far end
  int64_t format_minor_ = 0;
};

std::unique_ptr<Bundle> Bundle::from_memory(const void* data, size_t size_bytes) {
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % kAlignment != 0)
    throw fail(MDRT_ERROR_ARGUMENT, "a bundle in memory must be 64-byte aligned");
  if (size_bytes > static_cast<size_t>(INT64_MAX)) throw fail(MDRT_ERROR_ARGUMENT, "a bundle has fewer than 2^63 bytes");
  std::unique_ptr<Bundle> bundle(new Bundle);
  bundle->base_ = static_cast<const std::byte*>(data);
  bundle->file_bytes_ = static_cast<int64_t>(size_bytes);
  BundleParser(*bundle).parse();
  return bundle;
}

std::unique_ptr<Bundle> Bundle::open(const char* path) {
  const auto io_error = [&](const char* what) {
    return fail(MDRT_ERROR_IO, "%.300s: %s: %s", path, what, strerror(errno));
  };
  std::unique_ptr<Bundle> bundle(new Bundle);
  // O_NONBLOCK: a FIFO without a writer would block here; for regular files it means nothing.
  bundle->file_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (bundle->file_ < 0) throw io_error("cannot be opened");
  struct stat info;
  if (fstat(bundle->file_, &info) != 0) throw io_error("cannot be examined");
  if (!S_ISREG(info.st_mode)) throw fail(MDRT_ERROR_IO, "%.300s: is not a regular file", path);
  if (flock(bundle->file_, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw fail(MDRT_ERROR_IO, "%.300s: another process is writing this file; try again when it is done", path);
  bundle->file_bytes_ = info.st_size;
  if (info.st_size > 0) {
    void* base = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, bundle->file_, 0);
    if (base == MAP_FAILED) throw io_error("cannot be mapped");
    bundle->base_ = static_cast<const std::byte*>(base);
    bundle->mapped_ = true;
  }
  try {
    BundleParser(*bundle).parse();
  } catch (const Error& error) {
    throw Error(error.status(), std::string(path) + ": " + error.what());
  }
  return bundle;
}

Bundle::~Bundle() {
  if (mapped_) munmap(const_cast<std::byte*>(base_), static_cast<size_t>(file_bytes_));
  if (file_ >= 0) close(file_);
}

void Bundle::release_pages(const std::byte* begin, const std::byte* end) const {
  if (!mapped_) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

const Graph* Bundle::graph(const std::string& component) const {
  for (const Graph& graph : graphs_)
    if (graph.name == component) return &graph;
  return nullptr;
}

void Bundle::verify() const {
  const auto mismatch = [](const std::string& what, uint32_t stated, uint32_t found) {
    return fail(MDRT_ERROR_BUNDLE, "%.300s: the checksum states %08x, the bytes give %08x; the file is damaged, get it again",
                what.c_str(), stated, found);
  };
  const uint32_t header = crc32c(0, base_, static_cast<size_t>(header_bytes_));
  if (header != tensors_[0].crc32c) throw mismatch("header_crc32c", tensors_[0].crc32c, header);
  for (size_t i = 1; i < tensors_.size(); ++i) {
    const StoredTensor& tensor = tensors_[i];
    const uint32_t found = crc32c(0, tensor.data, static_cast<size_t>(tensor.size_bytes));
    if (found != tensor.crc32c) throw mismatch("tensor '" + tensor.name + "'", tensor.crc32c, found);
  }
  for (const Graph& graph : graphs_) {
    for (const Node& node : graph.nodes) {
      for (size_t slot = 0; slot < node.inputs.size(); ++slot) {
        if (!graph.is_weight(node.inputs[slot])) continue;
        const Weight& weight = graph.weights[static_cast<size_t>(node.inputs[slot] - graph.weight_base())];
        const Format& format = *find_format(op_row(node.op).inputs[slot].weight_kind, weight.dtype);
        if (!padding_is_zero(format, weight.data, weight_shape(node, slot)))
          throw fail(MDRT_ERROR_BUNDLE, "tensor '%.64s/%.256s': the padding is not zero", graph.name.c_str(), weight.name.c_str());
      }
    }
    verify_quantised(graph);
  }
}

}  // namespace mdrt
