// A worker's place in a plan, and the barriers it meets others at.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "parallel.h"
#include "plan.h"

namespace fastlstm {

struct Team {
  Plan plan;
  int64_t workers;
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> of_group;

  Team(const Plan& p, int64_t n) : plan(p), workers(n), all(n) {
    for (int64_t g = 0; g < plan.groups; g++) of_group.push_back(std::make_unique<Barrier>(plan.columns));
  }
};

class Place {
 public:
  Place(Team& team, int64_t worker) : worker(worker), workers(team.workers), team_(team) {}

  const int64_t worker, workers;

  // Workers beyond the plan's groups x columns help with what is shared among all, and only with that.
  bool in_plan() const { return worker < team_.plan.groups * team_.plan.columns; }
  int64_t group() const { return worker / team_.plan.columns; }
  Range mine(int64_t n) const { return share(n, worker, workers); }
  Range of_column(int64_t n) const { return share(n, worker % team_.plan.columns, team_.plan.columns); }
  Range of_group(int64_t n) const { return share(n, group(), team_.plan.groups); }
  void meet_all() const { team_.all.wait(); }
  void meet_group() const { team_.of_group[group()]->wait(); }

  // Calls f(row, rows) for this group's tiles of the first n rows of the batch.
  template <class F>
  void for_tiles(int64_t n, const F& f) const {
    const Plan& plan = team_.plan;
    const Range mine = plan.dealt ? Range{group() * plan.tile_rows, n} : of_group(plan.rows);
    const int64_t end = std::min(n, mine.end), step = plan.tile_rows * (plan.dealt ? plan.groups : 1);
    for (int64_t row = mine.begin; row < end; row += step) f(row, std::min(plan.tile_rows, end - row));
  }

 private:
  Team& team_;
};

}  // namespace fastlstm
