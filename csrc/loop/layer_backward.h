// The backward of one layer in one direction: a step of it, and what is taken over the steps of a chunk. What it is made of:
// layer_backward.cpp.
//
// A step yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are taken
// over all of its rows at once, while dG is still in the cache.
#pragma once
#include <exception>
#include <optional>

#include "cell/backward_stages.h"

namespace fastlstm {

template <class S>
class LayerBackward {
  using T = compute_t<S>;

 public:
  explicit LayerBackward(const BackwardCall<S>& call) : f(call), seq(call.seq), o(call) {}

  Work work() const { return o.work(); }

  // By one thread, before the others begin.
  void set_up(Team& team);

  // By every thread, before the first step; a barrier must follow.
  void begin(const Thread& thread) {
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(seq.B);
    for (int64_t p = panels.begin; p < panels.end; p++) products->pack(thread, p);
    for (BackwardStage<S>* stage : stages) stage->set_up(thread);
    products->set_up(thread);
    for (int64_t p = 0; p < o.r_panels; p++) o.take_rows(f.dh_n, rows.begin, rows.size(), o.R, p, dh.at(p, rows.begin));
  }

  // The s-th step; `row` is its first one within the chunk.
  void run(const Thread& thread, int64_t s, int64_t row) {
    for (BackwardStage<S>* stage : stages) stage->run(thread, s, row);
  }

  // The gradients of a step's stepwise columns of the inputs, where this thread's units of them are concerned.
  void input_gradient(const Thread& thread, int64_t s, int64_t row, const States<T>& dx) const {
    products->step_input_gradient(thread, seq.step(s), row, dx);
  }

  // Of the same step, by workers that are not in the plan as well.
  void keep_factors(const Thread& thread, int64_t s, int64_t row) {
    if (f.need_dw) products->concat_xh(thread, seq.step(s), row);
  }

  // h of `rows` sequences from b on after step t, from the records: into rows of H. (Where a call gives it.)
  void hidden(const Thread& thread, int64_t t, int64_t b, int64_t rows, S* to) const {
    products->hidden(thread, t, b, rows, [&](int64_t row, int64_t n, int64_t p, Block<const T> h) {
      o.store(n, units_of(o.H, p), h, {to + row * o.H + p * kPanel, o.H});
    });
  }

  // After the steps of a chunk, between barriers.
  void end_chunk(const Thread& thread, const Chunk& chunk) {
    if (f.need_dw) weight_gradients(thread, chunk);
    if (f.dx) products->input_gradients(thread, chunk);
  }

  // After the last step. Throws by `rethrow`, when all threads are done.
  void finish(const Thread& thread) {
    if (f.need_dw && !unpacked) {
      if (thread.worker == 0) make_gradients();
      thread.barrier_all();
      if (error) return;
    }
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(seq.B);
    for (int64_t p = 0, n = rows.size(); p < std::max(o.n_panels, o.r_panels); p++) {
      if (!o.v.cell) o.micro.add(n, kPanel, constant(gates->dc().at(p, rows.begin)), dh.at(p, rows.begin));
      if (f.dh0 && p < o.r_panels) o.put_rows(rows.begin, n, o.R, p, constant(dh.at(p, rows.begin)), f.dh0);
      if (f.dc0 && p < o.n_panels) o.put_rows(rows.begin, n, o.H, p, constant(gates->dc().at(p, rows.begin)), f.dc0);
    }
    const Range steps = thread.mine(seq.packed || !f.dx ? 0 : seq.T);
    const auto before = [&](int64_t row) { return o.images ? o.inputs_before(row) : row * f.dx_columns(); };
    for (int64_t t = steps.begin; t < steps.end; t++)
      std::fill(f.dx + before(seq.first[t] + seq.size[t]), f.dx + before(seq.first[t] + seq.B), S(0));
    for (int64_t p = panels.begin; p < panels.end && f.need_dw; p++) {
      products->write(p, gradients);
      for (BackwardStage<S>* stage : stages) stage->write(p, gradients);
    }
  }

  // After the steps, by one thread while others wait: memory that is as large as gradients of weights.
  void release() {
    if (!unpacked) products->release();
  }

  void rethrow() const {
    if (error) std::rethrow_exception(error);
  }

  // What the recurrent weights gave to the step before.
  const States<T>& dh_before() const { return dh; }

 private:
  std::unique_ptr<BackwardProducts<S>> make_products();
  std::unique_ptr<ProjectionBackward<S>> make_projection() const;

  void weight_gradients(const Thread& thread, const Chunk& chunk) {
    for (BackwardStage<S>* stage : stages) stage->weight_gradients(thread, chunk.rows);
    products->weight_gradients(thread, chunk);
  }

  // From the memory of what is done with: as large, and of pages that the system has cleared.
  void make_gradients() {
    products->release();
    try {
      gradients = f.make_dw();
    } catch (...) {
      error = std::current_exception();
    }
  }

  const BackwardCall<S>& f;
  const Sequence& seq;
  Context<S> o;
  States<T> dh;
  bool unpacked = false;
  WeightGradients<S> gradients{};  // where they are written
  std::exception_ptr error;        // of one worker, while others wait for it
  std::unique_ptr<BackwardProducts<S>> products;
  std::unique_ptr<ProjectionBackward<S>> projection;
  std::optional<GateBackward<S>> gates;
  std::optional<StateBackward<S>> states;
  std::vector<BackwardStage<S>*> stages;
};

}  // namespace fastlstm
