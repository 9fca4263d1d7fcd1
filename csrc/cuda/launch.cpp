#include "cuda/launch.h"

#include <bit>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

namespace fastlstm {
namespace {

static_assert(std::endian::native == std::endian::little, "a 32-bit parameter is read from the low bf16 of its slot");

constexpr int64_t kSharedBytes = 48 * 1024;  // what a program may have without asking
constexpr int kAllOfIt = 100;                // per cent of the memory that shared memory and the first-level cache share
constexpr int64_t kBarriers = 1024;          // more than any GPU has processors
constexpr size_t kBarrierBytes = 128;        // a line of the cache
constexpr int64_t kInt = std::numeric_limits<int32_t>::max(), kMaxGridY = 65535, kMaxThreads = 1024;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("fastlstm: " + message); }

std::string gpu(int device) { return "GPU " + std::to_string(device); }

std::string text(Grid grid) { return '(' + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ')'; }

// A launch's parameters as the driver wants them: a pointer to each.
class Parameters {
 public:
  explicit Parameters(std::vector<uint64_t> slots) : slots_(std::move(slots)) {
    // Triton's own, after those of the source: global scratch and profile scratch, both null
    slots_.insert(slots_.end(), 2, 0);
    for (uint64_t& slot : slots_) pointers_.push_back(&slot);
  }
  Parameters(Parameters&&) = default;  // a moved vector keeps its elements where they are

  uint64_t& operator[](int64_t i) { return slots_[i]; }
  void** pointers() { return pointers_.data(); }

 private:
  std::vector<uint64_t> slots_;
  std::vector<void*> pointers_;
};

}  // namespace

Kernel::Kernel(const void* cubin, std::string name, int64_t shared, int64_t threads, int device)
    : driver_(cuda::driver()), name_(std::move(name)), shared_(shared), threads_(threads), device_(device) {
  if (shared < 0 || shared > kInt)
    fail(name_ + " has " + std::to_string(shared) + " bytes of shared memory, expected 0 or more");
  if (threads < 1 || threads > kMaxThreads) fail(name_ + " has " + std::to_string(threads) + " threads, expected 1 to 1024");
  driver_.call(name_, driver_.device, &handle_, device_);
  enter();
  cuda::Module module = nullptr;  // never unloaded: kernels are kept, and the process's end frees them
  driver_.call(name_, driver_.load_module, &module, cubin);
  driver_.call(name_, driver_.function, &function_, module, name_.c_str());
  if (shared_ > kSharedBytes) {
    const int limit = attribute(cuda::kMaxSharedBytes);
    if (shared_ > limit)
      fail(name_ + " needs " + std::to_string(shared_) + " bytes of shared memory for a program, and " + gpu(device_) +
           " has " + std::to_string(limit) + ": it was compiled for another GPU, or with too large a tile");
    driver_.call(name_, driver_.set_function_attribute, function_, cuda::kMaxDynamicSharedBytes, static_cast<int>(shared_));
  }
  // programs of two directions may be on one processor: what the first one leaves is settled when it starts
  if (shared_ > 0) driver_.call(name_, driver_.set_function_attribute, function_, cuda::kSharedCarveout, kAllOfIt);
  int programs = 0;
  driver_.call(name_, driver_.occupancy, &programs, function_, static_cast<int>(threads_), static_cast<size_t>(shared_));
  resident_ = int64_t{programs} * attribute(cuda::kMultiprocessors);
  cooperative_ = attribute(cuda::kCooperativeLaunch) != 0;
}

int Kernel::attribute(cuda::DeviceAttribute which) const {
  int value = 0;
  driver_.call(name_, driver_.device_attribute, &value, which, handle_);
  return value;
}

void Kernel::enter() const {
  cuda::Context context = nullptr;
  driver_.call(name_, driver_.current_context, &context);
  if (!context) {
    driver_.call(name_, driver_.retain_primary_context, &context, handle_);
    driver_.call(name_, driver_.set_current_context, context);
  }
  cuda::Device current = 0;
  driver_.call(name_, driver_.current_device, &current);
  if (current != handle_)
    fail(name_ + " belongs to " + gpu(device_) + ", and the current one is " + gpu(current) +
         ": run it under torch.cuda.device(" + std::to_string(device_) + ")");
}

void Kernel::check_grid(Grid grid) const {
  if (grid.x < 1 || grid.x > kInt || grid.y < 1 || grid.y > kMaxGridY)
    fail(name_ + " has the grid " + text(grid) + ", expected 1 to " + std::to_string(kInt) + " by 1 to " +
         std::to_string(kMaxGridY) + " programs");
}

// A graph that captured such a launch could be replayed on another stream: its memory is the caller's. Memory isn't PyTorch's:
// a call may run inside a pool of a graph's own, whose memory ends with it. It's never given back: one piece per stream.
uint64_t Kernel::barriers(cuda::Stream stream) const {
  static std::mutex mutex;
  static std::map<std::tuple<const cuda::Driver*, int, cuda::Stream, std::thread::id>, cuda::Address> of_streams;
  const bool of_thread = reinterpret_cast<intptr_t>(stream) == cuda::kStreamPerThread;
  const std::lock_guard<std::mutex> lock(mutex);
  cuda::Address& address = of_streams[{&driver_, device_, stream, of_thread ? std::this_thread::get_id() : std::thread::id()}];
  if (!address) {
    // what another thread captures is not ours to end: PyTorch's allocator asks in the same way
    int mode = cuda::kCaptureRelaxed;
    driver_.call(name_, driver_.exchange_capture_mode, &mode);
    cuda::Address found = 0;
    const auto failed = driver_.allocate.address(&found, kBarriers * kBarrierBytes);
    driver_.call(name_, driver_.exchange_capture_mode, &mode);
    if (failed) driver_.fail(driver_.allocate.name, name_, failed);
    driver_.call(name_, driver_.fill, found, 0u, kBarriers * kBarrierBytes / sizeof(int32_t), stream);
    address = found;
  }
  return address;
}

void Kernel::launch(Grid grid, cuda::Stream stream, void** parameters) const {
  driver_.call(name_, driver_.launch, function_, grid.x, grid.y, 1, threads_, 1, 1, shared_, stream, parameters, nullptr);
}

bool Kernel::launch_cooperative(Grid grid, cuda::Stream stream, void** parameters) const {
  return driver_.call_unless(cuda::kTooLarge, name_, driver_.launch_cooperative, function_, grid.x, grid.y, 1, threads_, 1, 1, shared_,
                             stream, parameters);
}

void run_steps(std::vector<Launch> launches, int64_t first, int64_t count, cuda::Stream stream) {
  if (first < 0 || count < 0 || first > kInt || count > kInt - first)
    fail("there are " + std::to_string(count) + " steps from " + std::to_string(first) +
         " on, expected 0 or more, and numbers of 32 bits");
  std::vector<Parameters> parameters;
  for (Launch& l : launches) {
    l.kernel->check_grid(l.grid);
    const auto n = static_cast<int64_t>(l.parameters.size());
    if (l.step_param < 0 || l.step_param >= n)
      fail(l.kernel->name() + " has " + std::to_string(n) + " parameters, and the step is number " +
           std::to_string(l.step_param) + ", counted from 0");
    parameters.emplace_back(std::move(l.parameters));
  }
  if (count == 0) return;
  for (const Launch& l : launches) l.kernel->enter();
  for (int64_t s = first; s < first + count; s++) {
    for (size_t i = 0; i < launches.size(); i++) {
      const Launch& l = launches[i];
      parameters[i][l.step_param] = s;
      l.kernel->launch(l.grid, stream, parameters[i].pointers());
    }
  }
}

bool run_resident(const Kernel& kernel, Grid grid, std::vector<uint64_t> parameters, int64_t barrier_param, cuda::Stream stream) {
  kernel.check_grid(grid);
  const auto n = static_cast<int64_t>(parameters.size());
  if (barrier_param < 0 || barrier_param >= n)
    fail(kernel.name() + " has " + std::to_string(n) + " parameters, and the barrier is number " +
         std::to_string(barrier_param) + ", counted from 0");
  if (!kernel.cooperative())
    fail(kernel.name() + " needs a cooperative launch, which " + gpu(kernel.device()) + " lacks: launch it once per step");
  if (grid.x * grid.y > kernel.resident_programs())
    fail(kernel.name() + " has the grid " + text(grid) + ", and " + gpu(kernel.device()) + " can hold " +
         std::to_string(kernel.resident_programs()) + " of its programs at once: launch it once per step");
  if (grid.x > kBarriers)
    fail(kernel.name() + " has the grid " + text(grid) + ", expected at most " + std::to_string(kBarriers) +
         " along its first axis, which meet apart");
  kernel.enter();
  if (!parameters[barrier_param]) parameters[barrier_param] = kernel.barriers(stream);
  Parameters given(std::move(parameters));
  return kernel.launch_cooperative(grid, stream, given.pointers());
}

}  // namespace fastlstm
