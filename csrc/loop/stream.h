// A stack of layers in one direction, run by steps or chunks from call to call: weights are packed once, states stay.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fastlstm {

class Stream {
 public:
  // Of a layer and of the stack, as Python hands them over: addresses, 0 where there is none.
  struct Weights {
    uint64_t ih, hh, b_ih, b_hh, hr, peephole;
  };
  // P: the projection's size, 0 where there is none. h (L, B, P or H) and c (L, B, H), contiguous, are the caller's and outlive the
  // stream: after each call they hold the state, as `load` takes it. Their dtype is that of all tensors.
  struct Options {
    std::string variant, dtype;
    int64_t layers, B, I, H, P;
    uint64_t h, c;
  };

  virtual ~Stream() = default;
  // Takes the weights of each layer, which are not looked at again.
  virtual void pack(const std::vector<Weights>& weights) = 0;
  // Takes the state of sequence b from h and c.
  virtual void load(int64_t b) = 0;
  // T steps of x (T, B, I), whose last dimension is contiguous, into y (T, B, R). Throws where another thread is at it.
  virtual void run(uint64_t x, uint64_t y, int64_t T, int64_t t_stride, int64_t b_stride) = 0;
};

std::unique_ptr<Stream> make_stream(const Stream::Options& options);

}  // namespace fastlstm
