// The forward of the attention LSTM: in each step the cells of all layers, the read of the memory and the output in turn.
#include "attention/decoder.h"
#include "loop/layer_forward.h"
#include "products/linear.h"

namespace fastlstm {
namespace {

template <class S>
class DecoderForward {
  using T = compute_t<S>;
  static constexpr bool kSameType = Arithmetic<S>::kSameType;

 public:
  explicit DecoderForward(const DecoderForwardCall<S>& call)
      : f(call), d(call.shape), seq(call.seq),
        own_memory(call.saved ? 0 : Kept<S>(nullptr, d, seq, 0, call.dropped.layers, false).size),
        kept(call.saved ? call.saved : own_memory + 0, d, seq, record_size(), call.dropped.layers, call.saved),
        hidden(call.saved ? seq.T * seq.B * d.H : 0), inputs(call.seq.B * (call.shape.I + call.shape.F)),
        rests(kSameType ? 0 : 2 * call.seq.B * call.shape.M), memory(call.memory), reader(memory.get(), call.seq.T, false) {
    if (f.saved) kept.hidden.back() = kept.dropped.back() = hidden;
    const int64_t BH = seq.B * d.H, gates = f.variant.ih.gates * d.H, peepholes = f.variant.peepholes.size() * d.H;
    for (int64_t l = 0; l < d.L; l++) {
      const auto of = [&](const S* p, int64_t n) { return p ? p + l * n : nullptr; };
      const S* const ih = l ? f.w.ih_above + (l - 1) * gates * d.H : f.w.ih;
      const int64_t I = d.of_layer(l);
      calls.push_back({.variant = f.variant, .seq = seq, .size = {I, d.H, d.H, false},
                       .w = {ih, of(f.w.hh, gates * d.H), of(f.w.b_ih, gates), of(f.w.b_hh, gates), nullptr, of(f.w.peephole, peepholes)},
                       .x = {l ? kept.dropped[l - 1] : inputs, l ? seq.B * I : 0, I}, .h0 = f.h0 + l * BH, .c0 = f.c0 + l * BH,
                       .y = kept.hidden[l], .h_n = f.h_n + l * BH, .c_n = f.c_n + l * BH, .cells = nullptr, .saved = kept.records[l],
                       .stepwise = true});
    }
    for (const ForwardCall<S>& layer : calls) layers.push_back(std::make_unique<LayerForward<S>>(layer));
    if (d.has_output && d.tanh)
      tanh = reinterpret_cast<void (*)(T*, int64_t)>(find_kernels("output").address(Pass::forward, sizeof(T) == 8));
  }

  void run() {
    const Work work = d.work(layers[0]->work());
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Thread(*team, worker)); });
  }

 private:
  int64_t record_size() const { return panels_of(d.H) * Record(f.variant, {d.I, d.H, d.H, false}).saved(); }
  template <class V>
  V* row(V* rows, int64_t n, int64_t t, int64_t b) const { return rows + (t * seq.B + b) * n; }

  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers, false);
    for (const auto& layer : layers) layer->set_up(*team);
    const bool packed = seq.T > 1 || seq.B > LayerForward<S>::kUnpackedStepRows;
    if (d.projects_query) query = Linear<S>(with, f.w.query, f.w.b_query, d.A, d.H, 0, packed);
    if (d.has_output) output = Linear<S>(with, f.w.output, f.w.b_output, d.H, d.M, d.H, packed);
    scratch_size = reader.scratch_size() + team->plan.tile_rows * kMaxBlock + (kSameType ? 0 : d.A + d.M);
    scratch = Buffer<T>(workers * scratch_size);
  }

  void loop(const Thread& thread) {
    for (const auto& layer : layers) layer->begin(thread);
    memory.set_up(thread.mine(seq.B));
    reader.set_up(thread.mine(seq.B));
    query.set_up(thread), output.set_up(thread);
    begin_inputs(thread);
    clear_skipped_rows(thread);
    thread.barrier_all();
    int64_t first = 0;
    for (int64_t t = 0; t < seq.T && thread.in_plan(); t++) {
      if (d.before) attend(thread, t);
      for (int64_t l = 0; l < d.L; l++) {
        layers[l]->run(thread, t, first);
        if (kept.dropped[l] != kept.hidden[l]) drop_layer(thread, t, l);
      }
      if (!d.before) attend(thread, t);
      put_output(thread, t);
      first += seq.size[t];
    }
  }

  void attend(const Thread& thread, int64_t t) {
    if (d.projects_query) {
      project_query(thread, t);
      thread.barrier_group();
    }
    T* const mine = scratch + thread.worker * scratch_size;
    T *const wide_query = mine + scratch_size - d.A - d.M, *const wide_context = wide_query + d.A;  // where S is not T
    thread.for_tiles(seq.size[t], [&](int64_t begin, int64_t rows) {
      const Range share = thread.of_unit_group(rows);
      for (int64_t b = begin + share.begin; b < begin + share.end; b++) {
        if (d.before) fill_input(t, b);
        else if (b < seq.size_after(t)) fill_input(t + 1, b);  // all of this step's have been read
        const S* const h = state_of_query(t, b);
        const T* q = kept.row(kept.queries, d.A, t, b);
        if (d.own_queries() && !d.projects_query) scale(h, static_cast<T>(d.scale), kept.row(kept.queries, d.A, t, b));
        if constexpr (kSameType) {
          if (!d.own_queries()) q = h;
        } else if (!d.own_queries()) {
          scale(h, T(1), wide_query);
          q = wide_query;
        }
        S* const context = kept.row(kept.contexts, d.M, t, b);
        T *const read = wide_or(context, wide_context), *const weights = kept.row(kept.weights, d.S, t, b);
        reader.read(b, q, mine, weights, read);
        if constexpr (!kSameType) round_context(read, context, rest_of(t, b));
        if (f.alignments) with.store(1, d.S, {weights, 0}, {row(f.alignments, d.S, t, b), 0});
        if (d.before) std::copy_n(context, d.F, input(b) + d.I);
        if (d.feed == Feed::context) feed(t, b, context, 0, d.F, f.dropped.fed ? f.dropped.fed + (t * seq.B + b) * d.F : nullptr);
      }
    });
    thread.barrier_group();
  }

  // In two numbers, whose sum is nearly that of T. (Of infinite ones there is no rest.)
  void round_context(T* exact, S* to, S* rest) const {
    with.store(1, d.M, {exact, 0}, {to, 0});
    for (int64_t i = 0; i < d.M; i++) {
      const T left = exact[i] - static_cast<T>(to[i]);
      exact[i] = left == left ? left : T(0);
    }
    with.store(1, d.M, {exact, 0}, {rest, 0});
  }
  // Of two steps in turn.
  S* rest_of(int64_t t, int64_t b) const { return rests + (t % 2 * seq.B + b) * d.M; }

  // Where results of type T go that become `rounded`.
  static T* wide_or(S* rounded, [[maybe_unused]] T* wide) {
    if constexpr (kSameType) return rounded;
    else return wide;
  }
  void scale(const S* h, T by, T* to) const {
    for (int64_t i = 0; i < d.A; i++) to[i] = by * static_cast<T>(h[i]);
  }

  const S* state_of_query(int64_t t, int64_t b) const {
    if (!d.before) return row(kept.hidden[d.query_layer], d.H, t, b);
    return t ? row(kept.hidden[d.query_layer], d.H, t - 1, b) : f.h0 + (d.query_layer * seq.B + b) * d.H;
  }

  void project_query(const Thread& thread, int64_t t) {
    const Range mine = thread.of_unit_group(query.panels());
    for_blocks(thread, t, mine, [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
      query.multiply(rows, p, count, {state_of_query(t, b), d.H}, {nullptr, 0}, tile);
      const int64_t first = p * kPanel, n = std::min(count * kPanel, d.A - first);
      convert<T, T>(rows, n, constant(tile), {kept.row(kept.queries, d.A, t, b) + first, d.A});
    });
  }

  // Calls g(b, rows, p, count, tile) for this thread's tiles of the step and blocks of its panels.
  template <class G>
  void for_blocks(const Thread& thread, int64_t t, Range panels, const G& g) {
    T* const tile = scratch + thread.worker * scratch_size + reader.scratch_size();
    for_column_blocks(panels.begin, panels.end, [&](int64_t p, int64_t count) {
      thread.for_tiles(seq.size[t], [&](int64_t b, int64_t rows) { g(b, rows, p, count, Block<T>{tile, count * kPanel}); });
    });
  }

  void drop_layer(const Thread& thread, int64_t t, int64_t l) {
    thread.for_tiles(seq.size[t], [&](int64_t begin, int64_t rows) {
      const Range share = thread.of_unit_group(rows);
      for (int64_t b = begin + share.begin; b < begin + share.end; b++) {
        drop(d.H, f.dropped.layers + ((l * seq.T + t) * seq.B + b) * d.H, row(kept.hidden[l], d.H, t, b), row(kept.dropped[l], d.H, t, b));
      }
    });
    thread.barrier_group();
  }

  // y = mask * tanh(W_out [context, h] + b_out), and what is fed of it.
  void put_output(const Thread& thread, int64_t t) {
    S* const h = kept.hidden[d.L - 1];
    for_blocks(thread, t, thread.of_unit_group(panels_of(d.H)), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
      const int64_t first = p * kPanel, n = std::min(count * kPanel, d.H - first);
      const Block<S> y{row(f.y, d.H, t, b) + first, d.H};
      if (d.has_output) {
        output.multiply(rows, p, count, {kept.row(kept.contexts, d.M, t, b), d.M}, {row(h, d.H, t, b), d.H}, tile);
        if constexpr (!kSameType) output.add_rest(rows, p, count, {rest_of(t, b), d.M}, tile);
        if (d.tanh) tanh(tile.p, rows * count * kPanel);
        with.store(rows, n, constant(tile), y);
        if (f.saved) convert<T, T>(rows, n, constant(tile), {row(kept.outputs, d.H, t, b) + first, d.H});
      } else {
        convert<S, S>(rows, n, {row(h, d.H, t, b) + first, d.H}, y);
      }
      for (int64_t m = 0; m < rows; m++) {
        S* const of_row = y.p + m * y.row;
        if (f.dropped.output) drop(n, f.dropped.output + (t * seq.B + b + m) * d.H + first, of_row, of_row);
        if (d.feed == Feed::attentional) feed(t, b + m, of_row, first, n, nullptr);
      }
    });
    if (d.feed == Feed::attentional) thread.barrier_group();
  }

  // n values, from `first` on, to the next step, or to the final state of a sequence that ends.
  void feed(int64_t t, int64_t b, const S* from, int64_t first, int64_t n, const S* mask) {
    S* const to = (b < seq.size_after(t) ? input(b) + d.I : f.fed_n + b * d.F) + first;
    if (mask) drop(n, mask + first, from, to);
    else std::copy_n(from, n, to);
  }

  static void drop(int64_t n, const S* mask, const S* from, S* to) {
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<S>(static_cast<T>(mask[i]) * static_cast<T>(from[i]));
  }

  S* input(int64_t b) const { return inputs + b * (d.I + d.F); }
  void fill_input(int64_t t, int64_t b) const { std::copy_n(f.x.at(seq, t, b), d.I, input(b)); }

  // Those of the first step.
  void begin_inputs(const Thread& thread) {
    const Range rows = thread.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      const bool runs = seq.T > 0 && b < seq.size[0];
      if (runs) fill_input(0, b);
      if (d.feeds()) std::copy_n(f.fed0 + b * d.F, d.F, runs ? input(b) + d.I : f.fed_n + b * d.F);
    }
  }

  // Results, and what the backward multiplies over all rows.
  void clear_skipped_rows(const Thread& thread) {
    const Range steps = thread.mine(seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const auto clear = [&]<class V>(V* rows, int64_t n) { std::fill(row(rows, n, t, seq.size[t]), row(rows, n, t, seq.B), V(0)); };
      clear(f.y, d.H);
      if (f.alignments) clear(f.alignments, d.S);
      if (!f.saved) continue;
      if (d.own_queries()) clear(kept.queries, d.A);
      clear(kept.weights, d.S), clear(kept.contexts, d.M);
      for (int64_t l = 0; l < d.L; l++)
        if (kept.dropped[l] != kept.hidden[l]) clear(kept.dropped[l], d.H);
    }
  }

  const DecoderForwardCall<S>& f;
  const DecoderShape& d;
  const Sequence& seq;
  const Arithmetic<S> with;
  Buffer<T> own_memory;
  Kept<S> kept;
  Buffer<S> hidden;  // of the last layer, where a backward follows: that makes it again
  Buffer<S> inputs;  // of a step: x, and what is fed or the context
  Buffer<S> rests;   // what rounding took of contexts: the output may depend on it more than on all else, where they are large
  const WideMemory<S> memory;
  Reader<T> reader;
  std::vector<ForwardCall<S>> calls;
  std::vector<std::unique_ptr<LayerForward<S>>> layers;
  std::optional<Team> team;
  Linear<S> query, output;
  Buffer<T> scratch;  // of each worker: the reader's, a tile, and a query and a context before they are rounded
  int64_t scratch_size = 0;
  void (*tanh)(T*, int64_t) = nullptr;
};

}  // namespace

template <class S>
void DecoderForwardCall<S>::run() {
  DecoderForward<S>(*this).run();
}

template struct DecoderForwardCall<float>;
template struct DecoderForwardCall<double>;
template struct DecoderForwardCall<BFloat16>;

}  // namespace fastlstm
