// The backward of the attention LSTM: in each step the output, the read of the memory and the cells of all layers in turn.
#pragma once
#include "attention/decoder.h"
#include "attention/gradients.h"
#include "attention/linear_gradient.h"
#include "loop/layer_backward.h"
#include "products/linear.h"

namespace fastlstm {

template <class S>
class DecoderBackward {
  using T = compute_t<S>;
  static constexpr bool kSameType = Arithmetic<S>::kSameType;

 public:
  explicit DecoderBackward(const DecoderBackwardCall<S>& call);

  void run() {
    const Work work = d.work(layers[0]->work());
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Thread(*team, worker)); });
    if (error) std::rethrow_exception(error);
    for (const auto& layer : layers) layer->rethrow();
    if (f.need_dw && reader.additive()) memory_gradients->write_score(dw->score);
  }

 private:
  using Tanh = void (*)(const T*, T*, int64_t);

  int64_t record_size() const { return panels_of(d.H) * Record(f.variant, {d.I, d.H, d.H, false}).saved(); }
  template <class V>
  Buffer<V> rows_of(int64_t steps, int64_t n) const { return Buffer<V>(steps * seq.B * n + kPanel); }
  template <class V>
  V* row(V* rows, int64_t n, int64_t t, int64_t b) const { return rows + (t * seq.B + b) * n; }
  template <class V>
  V* row(const Buffer<V>& rows, int64_t n, int64_t t, int64_t b) const { return row(rows + 0, n, t, b); }
  // Of what is there for a chunk of steps.
  template <class Rows>
  auto* chunk_row(const Rows& rows, int64_t n, int64_t t, int64_t b) const { return row(rows, n, t - chunk_first[t], b); }
  const S* mask_of(const S* masks, int64_t n, int64_t t, int64_t b) const { return masks ? masks + (t * seq.B + b) * n : nullptr; }

  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers, false);
    for (const auto& layer : layers) layer->set_up(*team);
    if (d.projects_query) query = LinearBackward<S>(with, f.w.query, d.A, d.H, 0, d.H);
    if (d.has_output) {
      to_context = LinearBackward<S>(with, f.w.output, d.H, d.M + d.H, 0, d.M);
      to_hidden = LinearBackward<S>(with, f.w.output, d.H, d.M + d.H, d.M, d.H);
    }
    dinputs = States<T>::by_rows(seq.B, panels_of(d.F));
    memory_gradients.emplace(reader, with.micro, seq.T, workers);
    if (d.has_output) of_output = LinearGradient<S>(with, d.H, d.M, d.H, most * seq.B, workers, f.d.output);
    if (d.projects_query) of_query = LinearGradient<S>(with, d.A, d.H, 0, most * seq.B, workers, f.d.query);
    wide_size = kSameType ? 0 : std::max(d.H, d.S);
    scratch_size = reader.scratch_size() + team->plan.tile_rows * kMaxBlock + wide_size;
    scratch = Buffer<T>(workers * scratch_size);
  }

  void loop(const Thread& thread) {
    for (const auto& layer : layers) layer->begin(thread);
    memory.set_up(thread.mine(seq.B));
    reader.set_up(thread.mine(seq.B));
    query.set_up(thread), to_context.set_up(thread), to_hidden.set_up(thread);
    begin(thread);
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, true);
      int64_t first = 0;
      for (int64_t done = chunk.begin; done < chunk.end; done++) {
        const int64_t t = seq.T - 1 - done;
        if (thread.in_plan()) step(thread, t, first);
        keep_factors(thread, t, first);
        first += seq.size[t];
      }
      thread.barrier_all();
      for (const auto& layer : layers) layer->end_chunk(thread, chunk);
      if (f.need_dw) weight_gradients(thread, chunk);
      thread.barrier_all();
    }
    if (f.need_dw && seq.T == 0) weight_gradients(thread, {0, 0, 0});
    finish(thread);
  }

  void step(const Thread& thread, int64_t t, int64_t first) {
    output_gradient(thread, t);
    if (!d.before) attend(thread, t);
    for (int64_t l = top; l >= 0; l--) {
      if (!d.before && l == d.query_layer) query_gradient(thread, t, dy[l]);
      layers[l]->run(thread, t, first);
      if (l) {
        layers[l]->input_gradient(thread, t, first, dy[l - 1]);
        if (f.dropped.layers) drop(thread, t, dy[l - 1], f.dropped.layers + (l - 1) * seq.T * seq.B * d.H);
      }
    }
    if (d.F == 0) return;
    layers[0]->input_gradient(thread, t, first, dinputs);
    thread.barrier_group();
    if (!d.before) return;
    attend(thread, t);
    query_gradient(thread, t, layers[d.query_layer]->dh_before());
  }

  // Those of a step, in decoder_backward.cpp.
  void output_gradient(const Thread& thread, int64_t t);
  void output_row(int64_t t, int64_t b, T* to, int64_t first, int64_t n) const;
  void attend(const Thread& thread, int64_t t);
  void query_gradient(const Thread& thread, int64_t t, const States<T>& to);
  void drop(const Thread& thread, int64_t t, const States<T>& states, const S* masks);

  // Calls g(b) for this thread's rows of the step, which the unit groups of a row group share.
  template <class G>
  void shared_rows(const Thread& thread, int64_t t, const G& g) {
    thread.for_tiles(seq.size[t], [&](int64_t begin, int64_t rows) {
      const Range share = thread.of_unit_group(rows);
      for (int64_t b = begin + share.begin; b < begin + share.end; b++) g(b);
    });
  }

  // Calls g(b, rows, p, count, tile) for this thread's tiles of the step and blocks of its panels.
  template <class G>
  void for_blocks(const Thread& thread, int64_t t, int64_t panels, const G& g) {
    T* const tile = scratch + thread.worker * scratch_size + wide_size + reader.scratch_size();
    const Range mine = thread.of_unit_group(panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      thread.for_tiles(seq.size[t], [&](int64_t b, int64_t rows) { g(b, rows, p, count, Block<T>{tile, count * kPanel}); });
    });
  }

  // Where this thread puts a row of T that becomes or was one of S.
  T* wide(const Thread& thread) const { return scratch + thread.worker * scratch_size; }
  static const T* widen(const S* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<T>(from[i]);
    return to;
  }

  // The queries' gradients as products take them.
  S* query_factors() const {
    if constexpr (kSameType) return dqueries;
    else return rounded_dqueries;
  }

  // Whether queries are made of other states than those that the output is made of.
  bool own_states() const { return d.projects_query && (d.before || d.query_layer != top || !d.has_output); }

  // h of a layer after step t, of some rows.
  void put_hidden(const Thread& thread, int64_t l, int64_t t, Range rows, S* to) const {
    if (l == top) return layers[l]->hidden(thread, t, rows.begin, rows.size(), to);
    std::copy_n(row(kept.hidden[l], d.H, t, rows.begin), rows.size() * d.H, to);
  }

  // What the gradients of weights are made of beside what the step left, which is zero where a sequence has ended.
  void keep_factors(const Thread& thread, int64_t t, int64_t first) {
    for (const auto& layer : layers) layer->keep_factors(thread, t, first);
    if (!f.need_dw) return;
    const Range ended = thread.mine(seq.B - seq.size[t]), mine = thread.mine(seq.size[t]);
    const auto clear = [&](S* rows, int64_t n) { std::fill_n(chunk_row(rows, n, t, seq.size[t] + ended.begin), ended.size() * n, S(0)); };
    if (d.has_output) {
      clear(dz, d.H), clear(hidden, d.H);
      put_hidden(thread, top, t, mine, chunk_row(hidden, d.H, t, mine.begin));
    }
    if (d.projects_query) clear(query_factors(), d.A);
    if (!own_states()) return;
    clear(states, d.H);
    S* const to = chunk_row(states, d.H, t, mine.begin);
    if (t > 0 || !d.before) put_hidden(thread, d.query_layer, t - d.before, mine, to);
    else std::copy_n(f.h0 + (d.query_layer * seq.B + mine.begin) * d.H, mine.size() * d.H, to);
  }

  // What stood beside x.
  void put_fed(int64_t t, int64_t b, S* to) const {
    if (d.before) return void(std::copy_n(row(kept.contexts, d.M, t, b), d.F, to));
    if (t == 0) return void(std::copy_n(f.fed0 + b * d.F, d.F, to));
    const bool context = d.feed == Feed::context;
    if (context) std::copy_n(row(kept.contexts, d.F, t - 1, b), d.F, to);
    else convert<T, S>(1, d.F, {row(kept.outputs, d.F, t - 1, b), 0}, {to, 0});
    const S* const mask = mask_of(context ? f.dropped.fed : f.dropped.output, d.F, t - 1, b);
    for (int64_t i = 0; i < d.F && mask; i++) to[i] = static_cast<S>(static_cast<T>(mask[i]) * static_cast<T>(to[i]));
  }

  // The state before the last step, and zeros where a sequence has ended.
  void begin(const Thread& thread) {
    const Range rows = thread.mine(seq.B), steps = thread.mine(seq.T);
    for (int64_t b = rows.begin; b < rows.end; b++)
      dinputs.put(b, d.F, d.feeds() && f.dfed_n ? f.dfed_n + b * d.F : nullptr);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const auto clear = [&](T* rows, int64_t n) { std::fill(row(rows, n, t, seq.size[t]), row(rows, n, t, seq.B), T(0)); };
      clear(dcontexts, d.M), clear(dscores, d.S);
    }
  }

  // Of the output and the query, of a chunk of steps: between barriers.
  void weight_gradients(const Thread& thread, const Chunk& chunk) {
    const int64_t t = seq.T - chunk.end, rows = (chunk.end - chunk.begin) * seq.B;
    const bool add = chunk.begin > 0;
    if (d.has_output) of_output.run(thread, rows, dz, row(kept.contexts, d.M, t, 0), hidden, add);
    if (d.projects_query) of_query.run(thread, rows, query_factors(), own_states() ? states : hidden, nullptr, add);
  }

  // What is summed over all steps. Each gradient takes the memory of what is done with.
  void finish(const Thread& thread) {
    const bool made = alone(thread, [&] {
      for (const auto& layer : layers) layer->release();
      dz = {}, dqueries = {}, rounded_dqueries = {}, hidden = {}, states = {};
      if (!d.own_queries()) queries = rows_of<T>(seq.T, d.H);
      if (!d.own_queries() && !kSameType) hidden = rows_of<S>(1, d.H);
      dmemory = f.make_dmemory();
    });
    if (!made) return;
    if (!d.own_queries()) put_queries(thread);
    const T* const asked = d.own_queries() ? kept.queries : queries;
    memory_gradients->run(thread, {asked, kept.weights, dcontexts, dscores}, dmemory.memory, dmemory.keys);
    const Range mine = thread.mine(seq.B);
    for (int64_t b = mine.begin; b < mine.end && f.d.fed0; b++) with.store(1, d.F, {dinputs.at(0, b).p, 0}, {f.d.fed0 + b * d.F, 0});
    const bool ready = alone(thread, [&] {
      dcontexts = {}, dscores = {}, queries = {}, hidden = {};
      if (f.need_dw) make_dw();
    });
    if (!ready) return;
    for (const auto& layer : layers) layer->finish(thread);
    if (!f.need_dw) return;
    if (d.has_output) of_output.write(thread, dw->b_output);
    if (d.projects_query) of_query.write(thread, dw->b_query);
  }

  // Those of products, where they are h. A thread's rows are the same in each step: there is room for one step's as they were rounded.
  void put_queries(const Thread& thread) {
    const Range rows = thread.mine(seq.B);
    for (int64_t t = 0; t < seq.T; t++) {
      const Range mine{std::min(rows.begin, seq.size[t]), std::min(rows.end, seq.size[t])};
      T* const to = row(queries, d.H, t, mine.begin);
      if constexpr (kSameType) {
        put_hidden(thread, d.query_layer, t, mine, to);
      } else {
        S* const rounded = row(hidden + 0, d.H, 0, mine.begin);
        put_hidden(thread, d.query_layer, t, mine, rounded);
        widen(rounded, mine.size() * d.H, to);
      }
      const int64_t ended = std::max(rows.begin, seq.size[t]);
      std::fill_n(row(queries, d.H, t, ended), std::max<int64_t>(0, rows.end - ended) * d.H, T(0));
    }
    thread.barrier_all();
  }

  // By one worker, while all wait for it: whether it went well.
  template <class G>
  bool alone(const Thread& thread, const G& g) {
    thread.barrier_all();
    if (thread.worker == 0) {
      try {
        g();
      } catch (...) {
        error = std::current_exception();
      }
    }
    thread.barrier_all();
    return !error;
  }

  // At the end, or by a layer that needs them before.
  void make_dw() {
    if (!dw) dw = f.make_dw();
  }

  const DecoderBackwardCall<S>& f;
  const DecoderShape& d;
  const Sequence& seq;
  const Arithmetic<S> with;
  const Kept<S> kept;
  const WideMemory<S> memory;
  Reader<T> reader;
  const int64_t top;
  int64_t most = 0;                            // steps of a chunk
  std::vector<int64_t> chunk_first;            // of each step: the first of its chunk
  Buffer<S> dz, rounded_dqueries, hidden, states;  // of a chunk of steps; states: that queries were made of
  Buffer<T> dqueries;                          // of a chunk of steps
  Buffer<T> dcontexts, dscores, queries;       // of all steps; queries: at the end, where they are h
  std::vector<States<T>> dy;                   // of a step, of each layer
  States<T> dinputs;                           // of a step: of what layer 0 sees beside x
  std::vector<BackwardCall<S>> calls;
  std::vector<std::unique_ptr<LayerBackward<S>>> layers;
  std::optional<Team> team;
  LinearBackward<S> query, to_context, to_hidden;
  LinearGradient<S> of_query, of_output;
  std::optional<MemoryGradients<T>> memory_gradients;
  Buffer<T> scratch;  // of each worker: rows of S as T, the reader's, and a tile
  int64_t scratch_size = 0, wide_size = 0;
  Tanh tanh = nullptr;
  DecoderMemoryGradients<S> dmemory{};
  std::optional<DecoderWeightGradients<S>> dw;
  std::exception_ptr error;  // of the worker that makes room for gradients
};

}  // namespace fastlstm
