// One call of an LSTM decoder with attention on the CPU: what its ops hand to the loops.
#pragma once
#include <utility>

#include "attention/reader.h"
#include "loop/call.h"
#include "loop/plan.h"

namespace fastlstm {

// Of a decoder fewer than of other layers: what is kept of a chunk's rows is a tenth of its memory, and more take no less time.
constexpr int64_t kDecoderChunkRows = 128;

enum class Feed : int64_t { none, attentional, context };

// What the attention LSTM is made of. F: columns of layer 0's inputs beyond x: what is fed, or the context of the same step.
struct DecoderShape {
  int64_t L, I, H, F, M, A, S;
  bool before;
  Feed feed;
  int64_t query_layer;
  bool projects_query, has_output, tanh;
  double scale;  // of queries that are not projected

  bool feeds() const { return feed != Feed::none; }
  int64_t of_layer(int64_t l) const { return l ? H : I + F; }
  // Whether queries have rows of their own: else they are those of h.
  bool own_queries() const { return projects_query || before || scale != 1; }
  // That of a step for a row, from layer 0's: products of other layers, of the output and the query, and a read of the memory.
  Work work(Work first) const {
    first.k_input += (L - 1) * 2 * H + (M + H + A) / 4 + S * (A + M) / (4 * H);
    return first;
  }
};

template <class S>
struct DecoderWeights {
  const S *ih, *ih_above, *hh, *b_ih, *b_hh, *peephole, *query, *b_query, *output, *b_output;  // null where there is none
};

// Scaled masks, (L - 1, T, B, H), (T, B, H) and (T, B, M); null where nothing is dropped.
template <class S>
struct Dropped {
  const S *layers, *output, *fed;
};

// What the forward keeps, side by side in one block of memory: of all steps, rows of (T, B, ...); where no backward follows, some
// of it of two steps in turn. What layer 0 sees is not: x is the caller's, and what stands beside it is an output or a context. Nor
// is h of the last layer: its records yield it.
template <class S>
struct Kept {
  using T = compute_t<S>;
  T *queries, *weights, *outputs;  // outputs as they were before they are rounded: their tanh has 1 - y^2
  S* contexts;
  std::vector<S*> hidden, dropped;  // of each layer; dropped: as the layer above sees it; null where it is not here
  std::vector<T*> records;
  int64_t size;  // elements of T

  // Rows are read in whole panels: the last ones may end beyond.
  Kept(T* base, const DecoderShape& d, const Sequence& seq, int64_t record, bool drops_layers, bool save)
      : B_(seq.B), steps_(save ? seq.T : 2) {
    T* const begin = base;
    const auto take = [&](int64_t steps, int64_t n) { return std::exchange(base, base + steps * B_ * n); };
    const auto take_rounded = [&](int64_t steps, int64_t n) {
      return reinterpret_cast<S*>(std::exchange(base, base + (steps * B_ * n * sizeof(S) + sizeof(T) - 1) / sizeof(T)));
    };
    queries = take(d.own_queries() ? steps_ : 0, d.A), weights = take(steps_, d.S), contexts = take_rounded(steps_, d.M);
    outputs = take(save && d.has_output ? seq.T : 0, d.H);
    for (int64_t l = 0; l < d.L; l++) {
      hidden.push_back(save && l + 1 == d.L ? nullptr : take_rounded(seq.T, d.H));
      dropped.push_back(drops_layers && l + 1 < d.L ? take_rounded(seq.T, d.H) : hidden.back());
      records.push_back(save ? take(seq.T, record) : nullptr);
    }
    size = base - begin + kPanel;
  }

  // A row of queries, weights or contexts, n wide.
  template <class V>
  V* row(V* rows, int64_t n, int64_t t, int64_t b) const { return rows + (t % steps_ * B_ + b) * n; }

 private:
  int64_t B_, steps_;
};

template <class S>
struct DecoderForwardCall {
  using T = compute_t<S>;
  const Variant& variant;
  Sequence seq;
  DecoderShape shape;
  DecoderWeights<S> w;
  Memory<S> memory;
  Dropped<S> dropped;
  Rows<const S> x;
  const S *h0, *c0, *fed0;  // (L, B, H), (L, B, H), (B, F) or null
  S *y, *h_n, *c_n, *fed_n, *alignments;  // y (T, B, H); alignments (T, B, S) or null
  T* saved;  // null where no backward follows
  void run();
};

template <class S>
struct DecoderGradients {
  S *x, *h0, *c0, *fed0;  // x and fed0 may be null
  S *query, *output;      // null where there are none, or none of weights are wanted
};

// Those that are known at the end, when much memory is done with that they may take.
template <class S>
struct DecoderMemoryGradients {
  S *memory, *keys;  // keys may be null
};
template <class S>
struct DecoderWeightGradients {
  S *ih, *ih_above, *hh, *b, *peephole, *b_query, *score, *b_output;
};

template <class S>
struct DecoderBackwardCall {
  using T = compute_t<S>;
  const Variant& variant;
  Sequence seq;
  DecoderShape shape;
  DecoderWeights<S> w;
  Memory<S> memory;
  Dropped<S> dropped;
  Rows<const S> x, dy, dalignments;  // .p of gradients may be null
  const S *h0, *c0, *fed0;
  const S *dh_n, *dc_n, *dfed_n;  // null: zero
  T* saved;
  DecoderGradients<S> d;
  bool need_dw;
  std::function<DecoderMemoryGradients<S>()> make_dmemory;
  std::function<DecoderWeightGradients<S>()> make_dw;  // where need_dw is set
  void run();
};

}  // namespace fastlstm
