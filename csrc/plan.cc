#include "plan.h"

#include <sys/mman.h>
#include <algorithm>
#include <cstdio>
#include <numeric>

#include "base/checked.h"
#include "lower.h"

namespace mdrt {
namespace {

constexpr double kMegabyte = 1e6;
constexpr int64_t kWeightRangeBytes = 16 << 20;
// Small int8 copies cost little memory, and strips of them little work for each thread. Where memory is short, all are cut.
constexpr StripRule kUsualStrips = {4 << 20, 1 << 20}, kThinnestStrips = {0, 0};

int64_t available_memory_bytes() {
  FILE* stream = fopen("/proc/meminfo", "re");
  if (!stream) return INT64_MAX;
  char line[128];
  long long kilobytes = -1;
  while (kilobytes < 0 && fgets(line, sizeof line, stream)) {
    if (sscanf(line, "MemAvailable: %lld kB", &kilobytes) != 1) kilobytes = -1;
  }
  fclose(stream);
  return kilobytes < 0 ? INT64_MAX : kilobytes * 1024;
}

bool overlap_in_time(const Buffer& a, const Buffer& b) { return a.first_step <= b.last_step && b.first_step <= a.last_step; }

// Offsets by size, largest first, each at the lowest place that no buffer alive at the same time takes.
int64_t lay_out(std::vector<Buffer>* buffers) {
  std::vector<Buffer*> order;
  for (Buffer& buffer : *buffers) order.push_back(&buffer);
  std::stable_sort(order.begin(), order.end(), [](const Buffer* a, const Buffer* b) { return a->size_bytes > b->size_bytes; });
  std::vector<Buffer*> placed;        // by offset
  int64_t end = 0;
  for (Buffer* buffer : order) {
    int64_t offset = 0;
    for (const Buffer* other : placed) {
      if (!overlap_in_time(*buffer, *other)) continue;
      if (checked_add(offset, buffer->size_bytes) <= other->offset) break;
      offset = std::max(offset, other->offset + other->size_bytes);
    }
    buffer->offset = offset;
    end = std::max(end, checked_add(offset, buffer->size_bytes));
    placed.insert(std::upper_bound(placed.begin(), placed.end(), buffer,
                                   [](const Buffer* a, const Buffer* b) { return a->offset < b->offset; }),
                  buffer);
  }
  return end;
}

// Ranges of several megabytes, so that giving them back takes few calls.
std::vector<WeightRange> find_weight_ranges(const Graph& graph, const std::vector<int>& readers) {
  std::vector<size_t> order(graph.weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto address = [&](size_t weight) { return reinterpret_cast<uintptr_t>(graph.weights[weight].data); };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return address(a) < address(b); });
  std::vector<WeightRange> ranges;
  for (size_t weight : order) {
    const std::byte *begin = graph.weights[weight].data, *end = begin + graph.weights[weight].size_bytes;
    if (ranges.empty() || ranges.back().end != begin || ranges.back().end - ranges.back().begin >= kWeightRangeBytes) {
      ranges.push_back({readers[weight], begin, end});
    } else {
      ranges.back().last_step = std::max(ranges.back().last_step, readers[weight]);
      ranges.back().end = end;
    }
  }
  std::stable_sort(ranges.begin(), ranges.end(), [](const WeightRange& a, const WeightRange& b) { return a.last_step < b.last_step; });
  return ranges;
}

}  // namespace

Arena::Arena(int64_t size_bytes) : size_bytes_(static_cast<size_t>(std::max<int64_t>(size_bytes, 64))) {
  void* memory = mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw fail(MDRT_ERROR_MEMORY, "%.0f MB of memory cannot be reserved; use a smaller size or batch",
               static_cast<double>(size_bytes) / kMegabyte);
  }
  base_ = static_cast<std::byte*>(memory);
  // Every stage of a picture touches its arena anew; large pages, where the system has them, make that quick.
  madvise(base_, size_bytes_, MADV_HUGEPAGE);
}

Arena::~Arena() { munmap(base_, size_bytes_); }

void Arena::release() { madvise(base_, size_bytes_, MADV_DONTNEED); }

namespace {

// A plan whose arena does not exist yet.
struct Draft {
  std::unique_ptr<Plan> plan;
  std::unique_ptr<Lowering> lowering;
  int64_t total_bytes = 0;      // arena, and scratch of all threads
};

Draft draft_plan(const PlanRequest& request, const StripRule& strip_rule) {
  Draft draft;
  draft.plan = std::make_unique<Plan>();
  Plan* plan = draft.plan.get();
  plan->shapes = infer_shapes(request.graph, request.input_shapes);
  plan->places.resize(plan->shapes.size());
  draft.lowering = std::make_unique<Lowering>(request, strip_rule, *plan);
  draft.lowering->lower();
  plan->weight_ranges = find_weight_ranges(request.graph, plan->weight_readers);
  plan->arena_bytes = lay_out(&plan->buffers);
  draft.total_bytes = checked_add(plan->arena_bytes, checked_mul(plan->scratch_bytes, request.threads));
  return draft;
}

}  // namespace

std::unique_ptr<Plan> make_plan(const PlanRequest& request) {
  const int64_t limit = request.max_memory_bytes > 0 ? request.max_memory_bytes : available_memory_bytes();
  Draft draft = draft_plan(request, kUsualStrips);
  if (draft.total_bytes > limit) {
    Draft thin = draft_plan(request, kThinnestStrips);
    if (thin.total_bytes < draft.total_bytes) draft = std::move(thin);
  }
  if (draft.total_bytes > limit) {
    throw fail(MDRT_ERROR_MEMORY, "%s needs %.1f MB of memory at this size, the limit is %.1f MB; use a smaller size or batch, or raise max_memory",
               request.graph.name.c_str(), static_cast<double>(draft.total_bytes) / kMegabyte,
               static_cast<double>(limit) / kMegabyte);
  }
  draft.plan->arena = std::make_unique<Arena>(draft.total_bytes);
  draft.lowering->bind();
  return std::move(draft.plan);
}

}  // namespace mdrt
