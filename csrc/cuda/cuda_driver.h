// The CUDA driver's functions that launching needs, from libcuda as it is found at run time: no toolkit, no headers of CUDA.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace fastlstm::cuda {

using Result = int;      // CUresult; 0 is success
using Device = int;      // CUdevice
using Context = void*;   // CUcontext
using Module = void*;    // CUmodule
using Function = void*;  // CUfunction
using Stream = void*;    // CUstream; null is the default stream
using Address = unsigned long long;  // CUdeviceptr

enum DeviceAttribute : int { kMultiprocessors = 16, kCooperativeLaunch = 95, kMaxSharedBytes = 97 };
enum FunctionAttribute : int { kMaxDynamicSharedBytes = 8, kSharedCarveout = 9 };

constexpr int kCaptureRelaxed = 2;  // of CUstreamCaptureMode
constexpr intptr_t kStreamPerThread = 2;  // a handle that stands for another stream in each thread

constexpr Result kTooLarge = 720;  // COOPERATIVE_LAUNCH_TOO_LARGE

// An entry point, by its name in libcuda. Every driver since CUDA 10.1 has them all, none in a later version that differs.
template <class... Parameters>
struct Entry {
  const char* name;
  Result (*address)(Parameters...) = nullptr;
};

struct Driver {
  Entry<unsigned> init{"cuInit"};
  Entry<Result, const char**> error_name{"cuGetErrorName"};
  Entry<Result, const char**> error_text{"cuGetErrorString"};
  Entry<Device*, int> device{"cuDeviceGet"};
  Entry<int*, DeviceAttribute, Device> device_attribute{"cuDeviceGetAttribute"};
  Entry<Context*, Device> retain_primary_context{"cuDevicePrimaryCtxRetain"};
  Entry<Context*> current_context{"cuCtxGetCurrent"};
  Entry<Context> set_current_context{"cuCtxSetCurrent"};
  Entry<Device*> current_device{"cuCtxGetDevice"};
  Entry<Module*, const void*> load_module{"cuModuleLoadData"};
  Entry<Function*, Module, const char*> function{"cuModuleGetFunction"};
  Entry<Function, FunctionAttribute, int> set_function_attribute{"cuFuncSetAttribute"};
  Entry<int*> exchange_capture_mode{"cuThreadExchangeStreamCaptureMode"};
  Entry<Address*, size_t> allocate{"cuMemAlloc_v2"};
  Entry<Address, unsigned, size_t, Stream> fill{"cuMemsetD32Async"};
  Entry<int*, Function, int, size_t> occupancy{"cuOccupancyMaxActiveBlocksPerMultiprocessor"};
  // grid x, y, z, block x, y, z, shared bytes, stream, pointers to the parameters
  Entry<Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**> launch{
      "cuLaunchKernel"};
  Entry<Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**> launch_cooperative{
      "cuLaunchCooperativeKernel"};

  // Calls an entry point on behalf of a kernel (or of none: ""); what fails is thrown as std::runtime_error, with the remedy.
  template <class... Parameters, class... Arguments>
  void call(const std::string& kernel, const Entry<Parameters...>& entry, Arguments... arguments) const {
    if (const Result result = entry.address(arguments...)) fail(entry.name, kernel, result);
  }

  // The same, but for one result, about which the caller knows what to do: whether it was another.
  template <class... Parameters, class... Arguments>
  bool call_unless(Result known, const std::string& kernel, const Entry<Parameters...>& entry, Arguments... arguments) const {
    const Result result = entry.address(arguments...);
    if (result && result != known) fail(entry.name, kernel, result);
    return result != known;
  }

  [[noreturn]] void fail(const char* entry, const std::string& kernel, Result result) const;
};

// The driver in use; the first call opens it. It stays valid for the life of the process.
const Driver& driver();

// Another library takes the driver's place, for kernels loaded from now on. Tests hand in a double.
void open_driver(const std::string& path);

// Forget the driver in use: the next call of driver() opens the system's.
void close_driver();

}  // namespace fastlstm::cuda
