#include "loop/stream.h"

#include <atomic>
#include <stdexcept>

#include "loop/layer_forward.h"

namespace fastlstm {
namespace {

template <class S>
S* at(uint64_t address) {
  return reinterpret_cast<S*>(address);
}

// One layer, and the teams that run single steps of it, and several at once. It stays where it is: its parts refer to each other.
template <class S>
struct StreamLayer {
  explicit StreamLayer(const ForwardCall<S>& c) : call(c), layer(call) {}

  void set_steps(int64_t T) {
    Sequence& seq = call.seq;
    seq.T = T;
    seq.size.assign(T, seq.B);
    seq.first.resize(T);
    for (int64_t t = 0; t < T; t++) seq.first[t] = t * seq.B;
  }

  Team& team(int64_t workers) {
    std::optional<Team>& team = teams[call.seq.T > 1];
    if (!team || team->workers != workers) team.emplace(make_plan(call.seq, layer.work(), workers), workers, false);
    return *team;
  }

  ForwardCall<S> call;
  LayerForward<S> layer;
  std::optional<Team> teams[2];
  Buffer<S> y;  // of as many steps as are taken at once, which the layer above reads
};

template <class S>
class StreamOf final : public Stream {
 public:
  explicit StreamOf(const Options& o) : B_(o.B), I_(o.I), R_(o.P ? o.P : o.H), steps_((kChunkRows + B_ - 1) / B_) {
    const Variant& variant = find_variant(o.variant);
    for (int64_t l = 0; l < o.layers; l++) {
      const Sizes size{l ? R_ : o.I, o.H, R_, o.P > 0};
      S* const h = at<S>(o.h) + l * B_ * R_;
      S* const c = variant.cell ? at<S>(o.c) + l * B_ * o.H : h;
      layers_.push_back(std::make_unique<StreamLayer<S>>(ForwardCall<S>{
          .variant = variant, .seq = {.B = B_, .packed = false, .reverse = false}, .size = size, .w = {}, .x = {}, .h0 = h, .c0 = c,
          .y = nullptr, .h_n = h, .c_n = variant.cell ? c : nullptr, .cells = nullptr, .saved = nullptr, .streams = true}));
      StreamLayer<S>& made = *layers_.back();
      made.set_steps(steps_);
      made.layer.set_up(made.team(1));
      if (l + 1 < o.layers) made.y = Buffer<S>(steps_ * B_ * R_);
    }
  }

  void pack(const std::vector<Weights>& weights) override {
    const Use use(*this);
    for (size_t l = 0; l < layers_.size(); l++) {
      StreamLayer<S>& of = *layers_[l];
      const Weights& w = weights.at(l);
      of.call.w = {at<S>(w.ih), at<S>(w.hh), at<S>(w.b_ih), at<S>(w.b_hh), at<S>(w.hr), at<S>(w.peephole)};
      Team& alone = of.team(1);
      of.layer.take(alone);
      of.layer.pack(Thread(alone, 0));
      of.call.w = {};
    }
  }

  void load(int64_t b) override {
    const Use use(*this);
    for (const auto& of : layers_) of->layer.init_state({b, b + 1});
  }

  void run(uint64_t x, uint64_t y, int64_t T, int64_t t_stride, int64_t b_stride) override {
    const Use use(*this);
    if (T > 0 && I_ > 0 && !x) throw std::invalid_argument("x has no memory of its own");
    for (int64_t t = 0; t < T; t += steps_)
      run_steps({at<const S>(x) + t * t_stride, t_stride, b_stride}, at<S>(y) + t * B_ * R_, std::min(steps_, T - t));
  }

 private:
  // A call, and none beside it.
  class Use {
   public:
    explicit Use(StreamOf& of) : busy_(of.busy_) {
      if (busy_.test_and_set(std::memory_order_acquire))
        throw std::runtime_error("Stream is used by two threads at once, expected one at a time: its steps follow each other");
    }
    ~Use() { busy_.clear(std::memory_order_release); }

   private:
    std::atomic_flag& busy_;
  };

  // At most steps_ of them: layer by layer, each over all.
  void run_steps(Rows<const S> x, S* y, int64_t T) {
    int64_t wanted = 1;
    for (const auto& of : layers_) {
      of->set_steps(T);
      of->call.x = x;
      of->call.y = of->y ? static_cast<S*>(of->y) : y;
      x = {of->call.y, B_ * R_, R_};
      wanted = std::max(wanted, useful_workers(of->call.seq, of->layer.work(), max_workers()));
    }
    run_team(
        wanted,
        [&](int64_t workers) {
          for (const auto& of : layers_) of->layer.take(of->team(workers));
        },
        [&](int64_t worker) {
          for (const auto& of : layers_) {
            const Thread thread(*of->teams[T > 1], worker);
            of->layer.run_chunk(thread, {0, T, T * B_});
            if (of != layers_.back()) thread.barrier_all();
          }
        });
    for (const auto& of : layers_) of->layer.go_on(T);
  }

  const int64_t B_, I_, R_, steps_;
  std::vector<std::unique_ptr<StreamLayer<S>>> layers_;
  std::atomic_flag busy_;
};

}  // namespace

std::unique_ptr<Stream> make_stream(const Stream::Options& options) {
  if (options.dtype == "float32") return std::make_unique<StreamOf<float>>(options);
  if (options.dtype == "float64") return std::make_unique<StreamOf<double>>(options);
  if (options.dtype == "bfloat16") return std::make_unique<StreamOf<BFloat16>>(options);
  if (options.dtype == "float16") return std::make_unique<StreamOf<torch::headeronly::Half>>(options);
  throw std::invalid_argument("dtype is '" + options.dtype + "', expected 'float32', 'float64', 'bfloat16' or 'float16'");
}

}  // namespace fastlstm
