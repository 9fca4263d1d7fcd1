// The backward over time, as a class: backward.cpp runs the steps, gradients.cpp takes what is summed over many of them.
#pragma once
#include <exception>
#include <optional>
#include <type_traits>

#include "loop/pack.h"
#include "loop/recurrence.h"
#include "loop/team.h"

namespace fastlstm {

template <class S>
class Backward {
  using T = compute_t<S>;
  static constexpr bool kSameType = std::is_same_v<S, T>, kBf16 = std::is_same_v<S, BFloat16>;
  static constexpr int64_t kWeightRows = 48;  // rows of a weight gradient per job
  static constexpr int64_t kBiasBlock = 16;   // terms of a bias' gradient at a time
  static constexpr int64_t kInputRows = 24;   // rows of an input gradient at a time
  static constexpr int64_t kMaxBlock = 4 * kPanel;
  // With no more rows than this in all, or a single step, packing weights and gradients would not pay
  static constexpr int64_t kUnpackedRows = 8;

 public:
  explicit Backward(const BackwardCall<S>& call)
      : f(call), v(call.variant), seq(call.seq), record(call.variant, call.size), I(call.size.I), H(call.size.H), R(call.size.R),
        n_panels(call.size.panels()), r_panels(Sizes::blocks(R)), i_panels(Sizes::blocks(I)), gate_width(record.gate_width()),
        row_size(record.backward()), micro(micro_kernels<T>()), kernel(gate_kernel(v.recurrence, Pass::backward, sizeof(T) == 8)) {}

  void run();

 private:
  // backward.cpp
  void set_up(const Plan& plan, int64_t workers);
  void loop(const Thread& thread);
  void pack(const Thread& thread);
  void init_states(const Thread& thread);
  void step(const Thread& thread, int64_t t, int64_t row);
  void add_output_gradient(const Thread& thread, int64_t t, int64_t row);
  void apply_reset(int64_t t, int64_t b, int64_t rows, int64_t n, Block<T> state) const;
  void add_rows(int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const { add_given(f.dy, R, t, p, b, rows, to); }
  void add_given(const Rows<const S>& given, int64_t size, int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const;
  void fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile);
  template <class J>
  void concat_xh(const Thread& thread, int64_t t, int64_t row, J* rows);

  // gradients.cpp
  void pair_rows(const Thread& thread, int64_t rows);
  void weight_gradients(const Thread& thread, int64_t rows);
  void add_product(const GateMap& feed, int64_t p, int64_t rows, int64_t column, int64_t depth, int64_t k, T* to);
  void peephole_gradients(int64_t p, int64_t rows);
  void write_products(int64_t p, int64_t rows);
  void multiply(const GemmUnpacked<T>& product) const;
  bool skinny() const { return seq.rows() <= 4; }  // not of a tile: results may not depend on how rows were split
  void input_gradients(const Thread& thread, const Chunk& chunk);
  void input_gradients_unpacked(const Thread& thread, const Chunk& chunk);
  void combine(const GateMap& feed, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<T> to);
  template <class F>
  void scatter(const Chunk& chunk, int64_t row, int64_t rows, const F& put);
  void make_gradients();
  void finish(const Thread& thread);
  void write_bias(const GateMap& feed, int64_t p, int64_t n, S* to);
  void write(const GateMap& feed, const T* from, int64_t depth, int64_t p, int64_t n, S* to);

  // A panel's accumulators: dw_ih.T (I, columns), dw_hh.T (R, columns), and both those of a chunk's biases in one row of all slots.
  int64_t dw_panel() const { return I * v.ih.width() + R * v.hh.width() + gate_width; }
  // What the forward saved of row b of step t, in panel p; rows follow one another.
  const T* saved_of(int64_t t, int64_t p, int64_t b) const { return f.saved + (seq.first[t] * n_panels + p * seq.size[t] + b) * record.saved(); }
  T* dgates_of(int64_t p, int64_t row) const { return dgates + (p * chunk_rows + row) * gate_width; }
  BFloat16* bf16_dgates_of(int64_t p, int64_t row) const { return bf16_dgates + (p * chunk_rows + row) * gate_width; }
  Bf16Pair* dgate_pairs_of(int64_t p) const { return dgate_pairs + p * ((chunk_rows + 1) / 2) * gate_width; }
  T* dw_ih(int64_t p) const { return dw + p * dw_panel(); }
  T* dw_hh(int64_t p) const { return dw_ih(p) + I * v.ih.width(); }
  T* db(int64_t p) const { return dw_hh(p) + R * v.hh.width(); }

  const BackwardCall<S>& f;
  const Variant& v;
  const Sequence& seq;
  const Record record;
  const int64_t I, H, R, n_panels, r_panels, i_panels;  // panels of hidden units, of recurrent ones and of inputs
  const int64_t gate_width, row_size;                   // of a record, in elements
  const MicroKernels<T>& micro;
  const GateKernel kernel;
  std::optional<Team> team;
  WeightGradients<S> gradients{};  // where they are written
  std::exception_ptr error;  // of one worker, while others wait for it
  const Bf16Kernels* bf16 = nullptr;
  bool unpacked = false;
  // With bfloat16 instructions: weights, dG and [x, h_prev] as such, and the last two with rows in pairs too
  Buffer<Bf16Pair> pairs_ih, pairs_hh, dgate_pairs, xh_pairs;
  Buffer<BFloat16> bf16_dgates, bf16_xh, bf16_zeros;
  int64_t state_row = 0, xh_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> packed_ih, packed_hh, packed_hr, peepholes, seen_cells;
  // Sums over all rows, of either sign and any size, to little in the end: by chunks, and over chunks in float64
  Buffer<double> db_total, dpeepholes;
  Buffer<T> dh, dc, c0, dgates, xh, dw, dprojected, hidden, dw_hr, tiles;
};

}  // namespace fastlstm
