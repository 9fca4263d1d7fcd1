// The backward of the attention LSTM: in each step the output, the read of the memory and the cells of all layers in turn.
#include "attention/decoder.h"
#include "attention/gradients.h"
#include "loop/layer_backward.h"
#include "products/linear.h"

namespace fastlstm {
namespace {

template <class T>
class DecoderBackward {
 public:
  explicit DecoderBackward(const DecoderBackwardCall<T>& call)
      : f(call), d(call.shape), seq(call.seq), micro(micro_kernels<T>()),
        kept(call.saved, d, seq, record_size(), call.dropped.layers, true), reader(call.memory, call.seq.T, true), top(d.L - 1) {
    const int64_t BH = seq.B * d.H, gates = f.variant.ih.gates * d.H, peepholes = f.variant.peepholes.size() * d.H;
    int64_t most = 0;
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, true);
      chunk_first.insert(chunk_first.begin(), chunk.end - chunk.begin, seq.T - chunk.end);
      most = std::max(most, chunk.end - chunk.begin);
    }
    dz = rows_of(most, d.has_output ? d.H : 0), dqueries = rows_of(most, d.A);
    if (f.need_dw && d.has_output) hidden = rows_of(most, d.H);
    if (f.need_dw && own_states()) states = rows_of(most, d.H);
    dcontexts = rows_of(seq.T, d.M), dscores = rows_of(seq.T, d.S);
    output_bias.assign(d.H, 0.0), query_bias.assign(d.A, 0.0);
    for (int64_t l = 0; l < d.L; l++) dy.push_back(States<T>::by_rows(seq.B, panels_of(d.H)));
    for (int64_t l = 0; l < d.L; l++) {
      const auto of = [l](auto* p, int64_t n) { return p ? p + l * n : nullptr; };
      const auto of_inputs = [l, n = gates * d.H](auto* first, auto* above) { return l && above ? above + (l - 1) * n : first; };
      const int64_t I = d.of_layer(l);
      const Block<T> given = dy[l].at(0, 0);
      calls.push_back({.variant = f.variant, .seq = seq, .size = {I, d.H, d.H, false},
                       .w = {of_inputs(f.w.ih, f.w.ih_above), of(f.w.hh, gates * d.H), nullptr, nullptr, nullptr,
                             of(f.w.peephole, peepholes)},
                       .x = l ? Rows<const T>{kept.dropped[l - 1], seq.B * I, I} : f.x, .dy = {given.p, 0, given.row}, .dcells = {},
                       .h0 = f.h0 + l * BH, .c0 = f.c0 + l * BH, .h = kept.hidden[l], .gives_hidden = l == top,
                       .dh_n = of(f.dh_n, BH), .dc_n = of(f.dc_n, BH), .saved = kept.records[l], .dx = l ? nullptr : f.d.x,
                       .dh0 = f.d.h0 + l * BH, .dc0 = f.d.c0 + l * BH, .need_dw = f.need_dw,
                       .stepwise_begin = l ? 0 : d.I, .stepwise_columns = l ? d.H : d.F,
                       .make_dw = [this, of, of_inputs, gates, peepholes]() -> WeightGradients<T> {
                         make_dw();
                         return {of_inputs(dw->ih, dw->ih_above), of(dw->hh, gates * d.H), of(dw->b, gates), nullptr, nullptr,
                                 of(dw->peephole, peepholes)};
                       }});
    }
    if (d.F)
      calls[0].inputs = [this](int64_t t, int64_t b, int64_t rows, Block<T> to) {
        convert<T, T>(rows, d.I, {f.x.at(seq, t, b), f.x.b_stride}, to);
        for (int64_t m = 0; m < rows; m++) put_fed(t, b + m, to.p + m * to.row + d.I);
      };
    for (const BackwardCall<T>& layer : calls) layers.push_back(std::make_unique<LayerBackward<T>>(layer));
    if (d.has_output && d.tanh) tanh = reinterpret_cast<Tanh>(find_kernels("output").address(Pass::backward, sizeof(T) == 8));
  }

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
  Buffer<T> rows_of(int64_t steps, int64_t n) const { return Buffer<T>(steps * seq.B * n + kPanel); }
  T* row(T* rows, int64_t n, int64_t t, int64_t b) const { return rows + (t * seq.B + b) * n; }
  // Of what is there for a chunk of steps.
  T* chunk_row(T* rows, int64_t n, int64_t t, int64_t b) const { return row(rows, n, t - chunk_first[t], b); }
  const T* mask_of(const T* masks, int64_t n, int64_t t, int64_t b) const { return masks ? masks + (t * seq.B + b) * n : nullptr; }

  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers, false);
    for (const auto& layer : layers) layer->set_up(*team);
    if (d.projects_query) query = LinearBackward<T>(micro, f.w.query, d.A, d.H, 0, d.H);
    if (d.has_output) {
      to_context = LinearBackward<T>(micro, f.w.output, d.H, d.M + d.H, 0, d.M);
      to_hidden = LinearBackward<T>(micro, f.w.output, d.H, d.M + d.H, d.M, d.H);
    }
    dinputs = States<T>::by_rows(seq.B, panels_of(d.F));
    memory_gradients.emplace(reader, micro, seq.T, workers);
    scratch_size = reader.scratch_size() + std::max(team->plan.tile_rows * kMaxBlock, WeightProduct<T>::kTile);
    scratch = Buffer<T>(workers * scratch_size);
  }

  void loop(const Thread& thread) {
    for (const auto& layer : layers) layer->begin(thread);
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

  // dcontext and dh of the top layer, from the gradients of the output and of what was fed.
  void output_gradient(const Thread& thread, int64_t t) {
    if (d.has_output) {
      shared_rows(thread, t, [&](int64_t b) {
        T* const to = chunk_row(dz, d.H, t, b);
        output_row(t, b, to);
        if (d.tanh) tanh(row(kept.outputs, d.H, t, b), to, d.H);
      });
      thread.barrier_group();
    }
    for_blocks(thread, t, panels_of(d.M), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
      const int64_t first = p * kPanel, n = std::min(count * kPanel, d.M - first);
      const Block<T> to{row(dcontexts, d.M, t, b) + first, d.M};
      if (d.has_output) {
        to_context.multiply(rows, p, count, {chunk_row(dz, d.H, t, b), d.H}, tile, false);
        convert<T, T>(rows, n, constant(tile), to);
      } else {
        fill_rows(rows, n, T(0), to);
      }
      for (int64_t m = 0; m < rows && d.feed == Feed::context; m++) {
        const T *const mask = mask_of(f.dropped.fed, d.M, t, b + m), *const fed = dinputs.at(p, b + m).p;
        for (int64_t i = 0; i < n; i++) to.p[m * d.M + i] += mask ? mask[first + i] * fed[i] : fed[i];
      }
    });
    for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
      const Block<T> to = dy[top].at(p, b);
      if (d.has_output) return to_hidden.multiply(rows, p, count, {chunk_row(dz, d.H, t, b), d.H}, to, false);
      const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
      for (int64_t m = 0; m < rows; m++) {
        output_row(t, b + m, tile.p, p * kPanel, n);
        std::copy_n(tile.p, n, to.p + m * to.row);
      }
    });
    thread.barrier_group();
  }

  // The gradient of a row of outputs before they were dropped.
  void output_row(int64_t t, int64_t b, T* to) const { output_row(t, b, to, 0, d.H); }
  void output_row(int64_t t, int64_t b, T* to, int64_t first, int64_t n) const {
    const T* const given = f.dy.p ? f.dy.at(seq, t, b) + first : nullptr;
    const T* const fed = d.feed == Feed::attentional ? dinputs.at(0, b).p + first : nullptr;
    const T* const mask = mask_of(f.dropped.output, d.H, t, b);
    for (int64_t i = 0; i < n; i++) {
      const T sum = (given ? given[i] : T(0)) + (fed ? fed[i] : T(0));
      to[i] = mask ? mask[first + i] * sum : sum;
    }
  }

  void attend(const Thread& thread, int64_t t) {
    T* const mine = scratch + thread.worker * scratch_size;
    shared_rows(thread, t, [&](int64_t b) {
      T* const dcontext = row(dcontexts, d.M, t, b);
      if (d.before)
        for (int64_t i = 0; i < d.M; i++) dcontext[i] += dinputs.at(0, b).p[i];
      const T* const q = d.own_queries() ? row(kept.queries, d.A, t, b) : nullptr;  // products need none
      reader.read_backward(b, q, mine, row(kept.weights, d.S, t, b), row(kept.contexts, d.M, t, b), dcontext,
                           f.dalignments.p ? f.dalignments.at(seq, t, b) : nullptr, row(dscores, d.S, t, b),
                           chunk_row(dqueries, d.A, t, b));
    });
    thread.barrier_group();
  }

  // What the query gives to the gradient of the state that it was made of. Each thread has those panels that its gates need.
  void query_gradient(const Thread& thread, int64_t t, const States<T>& to) {
    for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T>) {
      const Block<T> sum = to.at(p, b);
      const Block<const T> dq{chunk_row(dqueries, d.A, t, b), d.A};
      if (d.projects_query) return query.multiply(rows, p, count, dq, sum, true);
      const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
      for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < n; i++) sum.p[m * sum.row + i] += static_cast<T>(d.scale) * dq.p[m * dq.row + p * kPanel + i];
    });
  }

  void drop(const Thread& thread, int64_t t, const States<T>& states, const T* masks) {
    for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T>) {
      const Block<T> to = states.at(p, b);
      const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
      for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] *= mask_of(masks, d.H, t, b + m)[p * kPanel + i];
    });
  }

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
    T* const tile = scratch + thread.worker * scratch_size + reader.scratch_size();
    const Range mine = thread.of_unit_group(panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      thread.for_tiles(seq.size[t], [&](int64_t b, int64_t rows) { g(b, rows, p, count, Block<T>{tile, count * kPanel}); });
    });
  }

  // Whether queries are made of other states than those that the output is made of.
  bool own_states() const { return d.projects_query && (d.before || d.query_layer != top || !d.has_output); }

  // h of a layer after step t, of some rows.
  void put_hidden(const Thread& thread, int64_t l, int64_t t, Range rows, T* to) const {
    if (l == top) return layers[l]->hidden(thread, t, rows.begin, rows.size(), to);
    std::copy_n(row(kept.hidden[l], d.H, t, rows.begin), rows.size() * d.H, to);
  }

  // What the gradients of weights are made of beside what the step left, which is zero where a sequence has ended.
  void keep_factors(const Thread& thread, int64_t t, int64_t first) {
    for (const auto& layer : layers) layer->keep_factors(thread, t, first);
    if (!f.need_dw) return;
    const Range ended = thread.mine(seq.B - seq.size[t]), mine = thread.mine(seq.size[t]);
    const auto clear = [&](T* rows, int64_t n) { std::fill_n(chunk_row(rows, n, t, seq.size[t] + ended.begin), ended.size() * n, T(0)); };
    if (d.has_output) {
      clear(dz, d.H), clear(hidden, d.H);
      put_hidden(thread, top, t, mine, chunk_row(hidden, d.H, t, mine.begin));
    }
    clear(dqueries, d.A);
    if (!own_states()) return;
    clear(states, d.H);
    T* const to = chunk_row(states, d.H, t, mine.begin);
    if (t > 0 || !d.before) put_hidden(thread, d.query_layer, t - d.before, mine, to);
    else std::copy_n(f.h0 + (d.query_layer * seq.B + mine.begin) * d.H, mine.size() * d.H, to);
  }

  // What stood beside x.
  void put_fed(int64_t t, int64_t b, T* to) const {
    if (d.before) return void(std::copy_n(row(kept.contexts, d.M, t, b), d.F, to));
    if (t == 0) return void(std::copy_n(f.fed0 + b * d.F, d.F, to));
    const bool context = d.feed == Feed::context;
    const T* const fed = row(context ? kept.contexts : kept.outputs, d.F, t - 1, b);
    const T* const mask = mask_of(context ? f.dropped.fed : f.dropped.output, d.F, t - 1, b);
    for (int64_t i = 0; i < d.F; i++) to[i] = mask ? mask[i] * fed[i] : fed[i];
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
    T* const tile = scratch + thread.worker * scratch_size + reader.scratch_size();
    using Product = WeightProduct<T>;
    if (d.has_output) {
      Product::run(thread, micro, rows, d.H, dz, d.M, row(kept.contexts, d.M, t, 0), tile, f.d.output, d.M + d.H, 0, add);
      Product::run(thread, micro, rows, d.H, dz, d.H, hidden, tile, f.d.output, d.M + d.H, d.M, add);
      Product::bias(thread, rows, d.H, dz, output_bias);
    }
    if (!d.projects_query) return;
    Product::bias(thread, rows, d.A, dqueries, query_bias);
    Product::run(thread, micro, rows, d.A, dqueries, d.H, own_states() ? states : hidden, tile, f.d.query, d.H, 0, add);
  }

  // What is summed over all steps. Each gradient takes the memory of what is done with.
  void finish(const Thread& thread) {
    const bool made = alone(thread, [&] {
      for (const auto& layer : layers) layer->release();
      dz = {}, dqueries = {}, hidden = {}, states = {};
      if (!d.own_queries()) queries = rows_of(seq.T, d.H);
      dmemory = f.make_dmemory();
    });
    if (!made) return;
    if (!d.own_queries()) put_queries(thread);
    const T* const asked = d.own_queries() ? kept.queries : queries;
    memory_gradients->run(thread, {asked, kept.weights, dcontexts, dscores}, dmemory.memory, dmemory.keys);
    const Range mine = thread.mine(seq.B);
    for (int64_t b = mine.begin; b < mine.end && f.d.fed0; b++) std::copy_n(dinputs.at(0, b).p, d.F, f.d.fed0 + b * d.F);
    const bool ready = alone(thread, [&] {
      dcontexts = {}, dscores = {}, queries = {};
      if (f.need_dw) make_dw();
    });
    if (!ready) return;
    for (const auto& layer : layers) layer->finish(thread);
    if (!f.need_dw) return;
    if (dw->b_output) WeightProduct<T>::write_bias(thread, d.H, output_bias, dw->b_output);
    if (dw->b_query) WeightProduct<T>::write_bias(thread, d.A, query_bias, dw->b_query);
  }

  // Those of products, where they are h.
  void put_queries(const Thread& thread) {
    for (int64_t t = 0; t < seq.T; t++) {
      const Range mine = thread.mine(seq.size[t]), ended = thread.mine(seq.B - seq.size[t]);
      put_hidden(thread, d.query_layer, t, mine, row(queries, d.H, t, mine.begin));
      std::fill_n(row(queries, d.H, t, seq.size[t] + ended.begin), ended.size() * d.H, T(0));
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

  const DecoderBackwardCall<T>& f;
  const DecoderShape& d;
  const Sequence& seq;
  const MicroKernels<T>& micro;
  const Kept<T> kept;
  Reader<T> reader;
  const int64_t top;
  std::vector<int64_t> chunk_first;            // of each step: the first of its chunk
  Buffer<T> dz, dqueries, hidden, states;      // of a chunk of steps; states: that queries were made of
  Buffer<T> dcontexts, dscores, queries;       // of all steps; queries: at the end, where they are h
  std::vector<double> output_bias, query_bias;  // sums over all steps
  std::vector<States<T>> dy;                   // of a step, of each layer
  States<T> dinputs;                           // of a step: of what layer 0 sees beside x
  std::vector<BackwardCall<T>> calls;
  std::vector<std::unique_ptr<LayerBackward<T>>> layers;
  std::optional<Team> team;
  LinearBackward<T> query, to_context, to_hidden;
  std::optional<MemoryGradients<T>> memory_gradients;
  Buffer<T> scratch;  // of each worker: the reader's, and a tile
  int64_t scratch_size = 0;
  Tanh tanh = nullptr;
  DecoderMemoryGradients<T> dmemory{};
  std::optional<DecoderWeightGradients<T>> dw;
  std::exception_ptr error;  // of the worker that makes room for gradients
};

}  // namespace

template <class T>
void DecoderBackwardCall<T>::run() {
  DecoderBackward<T>(*this).run();
}

template struct DecoderBackwardCall<float>;
template struct DecoderBackwardCall<double>;

}  // namespace fastlstm
