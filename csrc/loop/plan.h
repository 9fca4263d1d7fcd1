// How the work of a call is shared among workers. It never changes results, only speed.
#pragma once
#include <cstdint>

#include "loop/sequence.h"

namespace fastlstm {

// A contiguous share of n things for one of several workers.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
inline Range share(int64_t n, int64_t worker, int64_t workers, int64_t together = 1) {
  return {n / together * worker / workers * together, n / together * (worker + 1) / workers * together};
}

constexpr double kSplitRate = 200;  // multiply-adds per cycle, of one part of float32; of two, three times as many are needed

// At most, and a multiple of the micro-kernels' and of rows that stay together: a tile of records stays in the first-level cache. A
// convolution's sums are longer, and what stays there is a part of its weights; so are those of micro-kernels that take whole registers
// of terms at once.
constexpr int64_t kTileRows = 24, kWideTileRows = 32, kImageTileRows = 48;

// Workers form `row_groups` x `unit_groups`: a row group owns some tiles of rows of the batch, a unit group some panels of hidden
// units. Rows are independent, unless they are pixels of an image, so row groups never wait for each other within the loop; the
// unit groups of a row group meet after every step.
struct Plan {
  int64_t row_groups, unit_groups;
  int64_t rows, tile_rows;  // the batch is cut into tiles of at most tile_rows rows
  int64_t together;         // rows that stay together: those of a Sequence
  bool cyclic;              // tiles are dealt to the row groups in turn, or each row group has an equal range of rows
  bool precompute_input;    // products with the inputs are taken over many steps at once, not step by step
  bool few_steps;           // so few that weights are packed once more by each of them, panel by panel, and not written to be read again
};

struct Work {
  int64_t panels, width;         // width of a panel's products
  int64_t k_input, k_recurrent;  // row lengths of the products of a step
  int64_t bytes_per_value;
  int64_t tile_rows;             // of a tile
  double rate;                   // multiply-adds per cycle
  int64_t few_steps;             // so few that turning weights of h in each pays, though packed ones would stay in the cache
};

// The fastest plan for at most `workers` workers, by a small model of the time of a step.
Plan make_plan(const Sequence& seq, const Work& work, int64_t workers);
// The number of workers worth waking for this much work.
int64_t useful_workers(const Sequence& seq, const Work& work, int64_t available);

// Steps [begin, end) in running order, so many that they have about seq.chunk_rows rows.
struct Chunk {
  int64_t begin, end, rows;
};
Chunk next_chunk(const Sequence& seq, int64_t begin, bool backward);
int64_t max_chunk_rows(const Sequence& seq);

}  // namespace fastlstm
