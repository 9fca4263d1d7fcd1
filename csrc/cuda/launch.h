// Kernels that were compiled elsewhere, Triton's above all: loaded, and launched for every step or once for all of them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda_driver.h"

namespace fastlstm {

struct Grid {
  int64_t x, y;
};

class Kernel {
 public:
  // `cubin` is the binary, `name` the kernel's symbol in it, `shared` the dynamic shared memory of a program in bytes,
  // `threads` those of a program, `device` the ordinal of the GPU.
  Kernel(const void* cubin, std::string name, int64_t shared, int64_t threads, int device);

  const std::string& name() const { return name_; }
  int64_t shared() const { return shared_; }
  int64_t threads() const { return threads_; }
  int device() const { return device_; }

  // How many programs the GPU can hold at once: no more of them may wait for one another.
  int64_t resident_programs() const { return resident_; }
  bool cooperative() const { return cooperative_; }

  // Zeros for the launches of one stream, each of which leaves them so: kBarrierBytes for each of kBarriers.
  uint64_t barriers(cuda::Stream stream) const;

  // Throws where the calling thread's context is another GPU's; gives it the primary context where it has none.
  void enter() const;
  void check_grid(Grid grid) const;
  void launch(Grid grid, cuda::Stream stream, void** parameters) const;
  bool launch_cooperative(Grid grid, cuda::Stream stream, void** parameters) const;

 private:
  int attribute(cuda::DeviceAttribute which) const;

  const cuda::Driver& driver_;
  const std::string name_;
  const int64_t shared_, threads_;
  const int device_;
  cuda::Device handle_ = 0;
  cuda::Function function_ = nullptr;
  int64_t resident_ = 0;
  bool cooperative_ = false;
};

// One of the launches of a step. A parameter is a slot of 64 bits, of which the kernel reads as many as it declares.
struct Launch {
  std::shared_ptr<const Kernel> kernel;
  Grid grid;
  std::vector<uint64_t> parameters;  // without Triton's own
  int64_t step_param;                // the parameter that takes the number of the step
};

// For each step from `first` on, `count` of them: the launches, in order.
void run_steps(std::vector<Launch> launches, int64_t first, int64_t count, cuda::Stream stream);

// One launch whose programs run all at once, so that they may wait for one another. False where the driver can't hold as many as
// the GPU could: others have a share of it (MPS, green contexts).
//
// `barrier_param` is the parameter that takes where they count: where it is 0, memory of ours, of which each stream has its own.
// It holds zeros before the launch, and the launch has to leave it so.
bool run_resident(const Kernel& kernel, Grid grid, std::vector<uint64_t> parameters, int64_t barrier_param, cuda::Stream stream);

}  // namespace fastlstm
