#include "cuda/cuda_driver.h"

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>

namespace fastlstm::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
std::mutex mutex;
const Driver* in_use = nullptr;

const char* remedy(Result result) {
  switch (result) {
    case 2:  // OUT_OF_MEMORY, in PyTorch's words: those who search for a batch size that fits look for them
      return "CUDA out of memory. Use a smaller batch, or return cached memory with torch.cuda.empty_cache().";
    case 3:    // NOT_INITIALIZED
    case 4:    // DEINITIALIZED
    case 201:  // INVALID_CONTEXT
    case 709:  // CONTEXT_IS_DESTROYED
      return "This thread has no usable CUDA context: choose a GPU with torch.cuda.set_device; a process that uses "
             "CUDA must be started by 'spawn', not forked.";
    case 34:  // STUB_LIBRARY
      return "The library is a stub for linking: take the CUDA toolkit's folder 'stubs' out of LD_LIBRARY_PATH.";
    case 100:  // NO_DEVICE
    case 101:  // INVALID_DEVICE
      return "Compare torch.cuda.device_count() and CUDA_VISIBLE_DEVICES.";
    case 200:  // INVALID_IMAGE
    case 209:  // NO_BINARY_FOR_GPU
      return "The kernel was compiled for another GPU, or its file is damaged: delete Triton's cache (~/.triton/cache), "
             "update Triton, or use backend=\"reference\".";
    case 700:  // ILLEGAL_ADDRESS
    case 716:  // MISALIGNED_ADDRESS
    case 719:  // LAUNCH_FAILED
      return "A kernel that was launched before, not only this one, may be the cause: compute-sanitizer tells which.";
    default:
      return "";
  }
}

template <class... Parameters>
void find(void* library, const std::string& path, Entry<Parameters...>& entry) {
  entry.address = reinterpret_cast<Result (*)(Parameters...)>(dlsym(library, entry.name));
  if (!entry.address)
    throw std::runtime_error("fastlstm: the CUDA driver " + path + " has no function " + entry.name +
                             ": it is too old; install a newer NVIDIA driver");
}

template <class... Entries>
void find_all(void* library, const std::string& path, Entries&... entries) {
  (find(library, path, entries), ...);
}

// Neither the library nor the table is ever given back: kernels refer to them.
const Driver* open(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* const reason = dlerror();
    throw std::runtime_error("fastlstm: no CUDA driver: looked for " + path + " (" + (reason ? reason : "no reason given") +
                             "); install the NVIDIA driver, or use tensors on the CPU, or backend=\"auto\"");
  }
  Driver d;
  find_all(library, path, d.init, d.error_name, d.error_text, d.device, d.device_attribute, d.retain_primary_context,
           d.current_context, d.set_current_context, d.current_device, d.load_module, d.function, d.set_function_attribute,
           d.exchange_capture_mode, d.allocate, d.fill, d.occupancy, d.launch, d.launch_cooperative);
  d.call("", d.init, 0);
  return new Driver(d);
}

}  // namespace

void Driver::fail(const char* entry, const std::string& kernel, Result result) const {
  const char *name = nullptr, *text = nullptr;
  error_name.address(result, &name);
  error_text.address(result, &text);
  std::string message = std::string("fastlstm: ") + entry + (kernel.empty() ? "" : " of " + kernel) + " failed: ";
  message += name ? name : "error " + std::to_string(result);
  if (text) message += std::string(" (") + text + ")";
  const std::string advice = remedy(result);
  throw std::runtime_error(advice.empty() ? message : message + ". " + advice);
}

const Driver& driver() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!in_use) in_use = open(kLibrary);
  return *in_use;
}

void open_driver(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex);
  in_use = open(path);
}

void close_driver() {
  const std::lock_guard<std::mutex> lock(mutex);
  in_use = nullptr;
}

}  // namespace fastlstm::cuda
