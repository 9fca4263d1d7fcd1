// The backward over time, as a class: backward.cpp runs the steps, gradients.cpp takes what is summed over many of them.
#pragma once
#include <exception>
#include <optional>
#include <type_traits>

#include "pack.h"
#include "recurrence.h"
#include "team.h"

namespace fastlstm {

template <class S>
class Backward {
  using T = compute_t<S>;
  static constexpr bool kSameType = std::is_same_v<S, T>, kHalf = std::is_same_v<S, BFloat16>;
  static constexpr int64_t kWeightRows = 48;  // rows of a weight gradient per job
  static constexpr int64_t kBiasBlock = 16;   // terms of a bias' gradient at a time
  static constexpr int64_t kInputRows = 24;   // rows of an input gradient at a time
  static constexpr int64_t kMaxBlock = 4 * kLanes;
  // With no more rows than this in all, or a single step, packing weights and gradients would not pay
  static constexpr int64_t kDirectRows = 8;

 public:
  explicit Backward(const BackwardCall<S>& call)
      : f(call), v(call.variant), seq(call.seq), record(call.variant, call.size), I(call.size.I), H(call.size.H), R(call.size.R),
        P(call.size.panels()), units(Sizes::blocks(R)), inputs(Sizes::blocks(I)), gates(record.gates()),
        row_size(record.backward()), path(gemm_path<T>()), kernel(gate_kernel(v.recurrence, Pass::backward, sizeof(T) == 8)) {}

  void run();

 private:
  // backward.cpp
  void set_up(const Plan& plan, int64_t workers);
  void loop(const Place& place);
  void pack(const Place& place);
  void begin_states(const Place& place);
  void step(const Place& place, int64_t t, int64_t row);
  void add_output_gradient(const Place& place, int64_t t, int64_t row);
  void cut_off(int64_t t, int64_t b, int64_t rows, int64_t n, Block<T> state) const;
  void add_rows(int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const { add_given(f.dy, R, t, p, b, rows, to); }
  void add_given(const Rows<const S>& given, int64_t size, int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const;
  void fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile);
  template <class J>
  void join(const Place& place, int64_t t, int64_t row, J* rows);

  // gradients.cpp
  void pair_rows(const Place& place, int64_t rows);
  void weight_gradients(const Place& place, int64_t rows);
  void add_product(const Feed& feed, int64_t p, int64_t rows, int64_t column, int64_t depth, int64_t k, T* to);
  void peephole_gradients(int64_t p, int64_t rows);
  void write_products(int64_t p, int64_t rows);
  void multiply(const Combine<T>& product) const;
  bool few() const { return seq.rows() <= 4; }  // not of a tile: results may not depend on how rows were split
  void input_gradients(const Place& place, const Chunk& chunk);
  void input_gradients_direct(const Place& place, const Chunk& chunk);
  void combine(const Feed& feed, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<T> to);
  template <class F>
  void scatter(const Chunk& chunk, int64_t row, int64_t rows, const F& put);
  void make_gradients();
  void finish(const Place& place);
  void write_bias(const Feed& feed, int64_t p, int64_t n, S* to);
  void write(const Feed& feed, const T* from, int64_t depth, int64_t p, int64_t n, S* to);

  // A panel's accumulators: dw_ih.T (I, columns), dw_hh.T (R, columns), and both those of a chunk's biases in one row of all slots.
  int64_t dw_panel() const { return I * v.ih.columns() + R * v.hh.columns() + gates; }
  // What the forward saved of row b of step t, in panel p; rows follow one another.
  const T* saved_of(int64_t t, int64_t p, int64_t b) const { return f.saved + (seq.first[t] * P + p * seq.size[t] + b) * record.saved(); }
  T* dgates_of(int64_t p, int64_t row) const { return dgates + (p * chunk_rows + row) * gates; }
  BFloat16* half_dgates_of(int64_t p, int64_t row) const { return half_dgates + (p * chunk_rows + row) * gates; }
  Pair* dgate_pairs_of(int64_t p) const { return dgate_pairs + p * ((chunk_rows + 1) / 2) * gates; }
  T* dw_ih(int64_t p) const { return dw + p * dw_panel(); }
  T* dw_hh(int64_t p) const { return dw_ih(p) + I * v.ih.columns(); }
  T* db(int64_t p) const { return dw_hh(p) + R * v.hh.columns(); }

  const BackwardCall<S>& f;
  const Variant& v;
  const Sequence& seq;
  const Record record;
  const int64_t I, H, R, P, units, inputs;  // P panels of hidden units, blocks of recurrent units and of inputs
  const int64_t gates, row_size;            // of a record, in elements
  const GemmPath<T>& path;
  const GateKernel kernel;
  std::optional<Team> team;
  WeightGradients<S> gradients{};  // where they are written
  std::exception_ptr error;  // of one worker, while others wait for it
  const HalfPath* half = nullptr;
  bool direct = false;
  // With bfloat16 instructions: weights, dG and [x, h_prev] as such, and the last two with rows in pairs too
  Buffer<Pair> pairs_ih, pairs_hh, dgate_pairs, joined_pairs;
  Buffer<BFloat16> half_dgates, half_joined, half_zeros;
  int64_t state_row = 0, joined_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> packed_ih, packed_hh, packed_hr, peepholes, seen_cells;
  // Sums over all rows, of either sign and any size, to little in the end: by chunks, and over chunks in float64
  Buffer<double> db_total, dpeepholes;
  Buffer<T> dh, dc, c0, dgates, joined, dw, dprojected, hidden, dw_hr, tiles;
};

}  // namespace fastlstm
