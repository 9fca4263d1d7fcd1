// A worker's thread of a team: its share of the work, and the barriers where it waits for others.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "loop/parallel.h"
#include "loop/plan.h"

namespace fastlstm {

struct Team {
  Plan plan;
  int64_t workers;
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> of_group;  // one for all where rows are pixels, which need their neighbours

  Team(const Plan& p, int64_t n, bool images) : plan(p), workers(n), all(n) {
    const int64_t meeting = images ? plan.row_groups : 1;  // row groups at a barrier
    for (int64_t g = 0; g < plan.row_groups; g += meeting) of_group.push_back(std::make_unique<Barrier>(meeting * plan.unit_groups));
  }
};

class Thread {
 public:
  Thread(Team& team, int64_t worker) : worker(worker), workers(team.workers), team_(team) {}

  const int64_t worker, workers;

  // Workers beyond the plan's row groups x unit groups help with what is shared among all, and only with that.
  bool in_plan() const { return worker < team_.plan.row_groups * team_.plan.unit_groups; }
  int64_t row_group() const { return worker / team_.plan.unit_groups; }
  Range mine(int64_t n, int64_t together = 1) const { return share(n, worker, workers, together); }
  // The same among those in the plan.
  Range of_plan(int64_t n) const { return share(n, worker, team_.plan.row_groups * team_.plan.unit_groups); }
  Range of_unit_group(int64_t n) const { return share(n, worker % team_.plan.unit_groups, team_.plan.unit_groups); }
  Range of_row_group(int64_t n) const { return share(n, row_group(), team_.plan.row_groups, team_.plan.together); }
  void barrier_all() const { team_.all.wait(); }
  void barrier_group() const { team_.of_group[team_.of_group.size() == 1 ? 0 : row_group()]->wait(); }

  // Calls f(row, rows) for this group's tiles of the first n rows of the batch.
  template <class F>
  void for_tiles(int64_t n, const F& f) const { for_tiles(n, team_.plan.tile_rows, f); }
  // The same rows in tiles of another size, where they are not dealt out by tiles.
  template <class F>
  void for_tiles(int64_t n, int64_t tile_rows, const F& f) const {
    const Plan& plan = team_.plan;
    if (plan.cyclic) tile_rows = plan.tile_rows;
    const Range mine = plan.cyclic ? Range{row_group() * plan.tile_rows, n} : of_row_group(plan.rows);
    const int64_t end = std::min(n, mine.end), step = tile_rows * (plan.cyclic ? plan.row_groups : 1);
    for (int64_t row = mine.begin; row < end; row += step) f(row, std::min(tile_rows, end - row));
  }

 private:
  Team& team_;
};

}  // namespace fastlstm
