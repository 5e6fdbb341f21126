// What stands behind the opaque handles of mdrt.h, and how exceptions end at the boundary.
#pragma once

#include <atomic>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "base/error.h"
#include "mdrt.h"
#include "model.h"
#include "sample.h"

namespace mdrt {

// A model and its jobs share this, so a job that outlives mdrt_close finds an empty model instead of a dangling one.
struct Handle {
  std::unique_ptr<Model> model;         // empty after mdrt_close
  mdrt_job* unfinished_job = nullptr;   // it owns the executors' arenas until it is done
  std::atomic<bool> cancel{false};
  int (*poll)(void* user) = nullptr;    // mdrt_internal: set_poll
  void* poll_user = nullptr;
  char error[1024] = "";

  std::mutex mutex;
  std::atomic<std::thread::id> owner{};   // of the mutex: tells a callback from a second caller
};

// Waits for other threads. A call from inside the model's own callback would wait for ever, so it is refused.
class HandleLock {
 public:
  explicit HandleLock(Handle& handle) : handle_(handle) {
    if (handle.owner.load() == std::this_thread::get_id()) {
      throw Error(MDRT_ERROR_STATE, "the model is in use by the call that made this callback; wait until it returns");
    }
    handle.mutex.lock();
    handle.owner.store(std::this_thread::get_id());
  }
  ~HandleLock() {
    handle_.owner.store(std::thread::id());
    handle_.mutex.unlock();
  }
  HandleLock(const HandleLock&) = delete;

 private:
  Handle& handle_;
};

template <class T>
T& required(T* pointer, const char* name) {
  if (!pointer) throw fail(MDRT_ERROR_ARGUMENT, "%s is NULL", name);
  return *pointer;
}

// Runs body() and turns what it throws into a status and a sentence.
template <class Body>
mdrt_status guarded(char* errbuf, size_t errbuf_size, Body body) noexcept {
  mdrt_status status = MDRT_ERROR_INTERNAL;
  const auto describe = [&](mdrt_status found, const char* sentence) {
    status = found;
    if (errbuf && errbuf_size > 0) snprintf(errbuf, errbuf_size, "%s", sentence);
  };
  try {
    body();
    return MDRT_OK;
  } catch (const Error& error) {
    describe(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    describe(MDRT_ERROR_MEMORY, "the system has no memory left for this; use a smaller size or close other programs");
  } catch (const std::length_error&) {
    describe(MDRT_ERROR_MEMORY, "the system has no memory left for this; use a smaller size or close other programs");
  } catch (const std::exception& error) {
    describe(MDRT_ERROR_INTERNAL, error.what());
  } catch (...) {
    describe(MDRT_ERROR_INTERNAL, "an unknown error; please report it");
  }
  return status;
}

// The same for a call on a model: alone on it, while it is open. body(Model&).
template <class Body>
mdrt_status with_model(const std::shared_ptr<Handle>& handle, Body body) noexcept {
  return guarded(handle->error, sizeof handle->error, [&] {
    HandleLock lock(*handle);
    if (!handle->model) throw Error(MDRT_ERROR_STATE, "the model was closed; open it again");
    body(*handle->model);
  });
}

}  // namespace mdrt

struct mdrt_model {
  std::shared_ptr<mdrt::Handle> handle;
};

struct mdrt_job {
  std::shared_ptr<mdrt::Handle> handle;
  std::unique_ptr<mdrt::Job> job;
  bool failed = false;
};
