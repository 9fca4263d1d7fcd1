// An op over n elements, each with arguments of its own, weights among them (`torch.vmap` of an ensemble): a call for each, whose
// results lie one behind the other.
#pragma once
#include <atomic>
#include <exception>
#include <mutex>
#include <string>

#include "loop/parallel.h"
#include "ops/ops.h"

namespace fastlstm {

// Of an argument that is mapped along `dim`, or is everybody's (-1), that of the i-th.
inline Tensor element(const Tensor& t, int64_t dim, int64_t i) {
  if (dim < 0) return t;
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end()), strides(t.strides().begin(), t.strides().end());
  const int64_t offset = i * strides[dim];
  shape.erase(shape.begin() + dim), strides.erase(strides.begin() + dim);
  return part_of(t, shape, strides, offset);
}
inline Optional element(const Optional& t, int64_t dim, int64_t i) { return t ? Optional(element(*t, dim, i)) : std::nullopt; }
inline bool element(bool flag, int64_t, int64_t) { return flag; }

inline void check_mapped(const Tensor& t, int64_t dim, int64_t n) {
  check(dim < t.dim() && (dim < 0 || t.size(dim) == n), "dims names a dimension that an argument lacks, or of another size than n");
}
inline void check_mapped(const Optional& t, int64_t dim, int64_t n) {
  if (t) check_mapped(*t, dim, n);
}
inline void check_mapped(bool, int64_t, int64_t) {}

// Calls run(i) for i from 0 to n - 1. After the first, elements are dealt among threads, each of which runs a whole one alone, where
// there are more than threads.
template <class Run>
void run_each(int64_t n, const Run& run) {
  run(0);
  const int64_t workers = max_workers();
  std::atomic<int64_t> next{1};
  std::exception_ptr error;
  std::mutex first_error;
  const auto work = [&] {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) run(i);
    } catch (...) {
      next.store(n, std::memory_order_relaxed);
      const std::lock_guard lock(first_error);
      error = std::current_exception();
    }
  };
  if (workers == 1 || n <= workers) {
    work();
  } else {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { work(); });
  }
  if (error) std::rethrow_exception(error);
}

template <auto op>
struct Each;
template <class... Results, class... Args, std::tuple<Results...> (*op)(Args...)>
struct Each<op> {
  // `dims`: of each argument, -1 where it is everybody's.
  static std::tuple<Results...> run(Args... args, int64_t n, std::vector<int64_t> dims) {
    check(n > 0 && dims.size() == sizeof...(Args), "n must be at least 1, and dims have a number for each argument before it");
    return [&]<size_t... k, size_t... r>(std::index_sequence<k...>, std::index_sequence<r...>) {
      (check_mapped(args, dims[k], n), ...);
      std::vector<Tensor> wholes;
      wholes.reserve(sizeof...(r));
      run_each(n, [&](int64_t i) {
        Parts own{wholes, n, i};
        const Within scope(own);
        op(element(args, dims[k], i)...);
      });
      check(wholes.size() == sizeof...(r), "an op makes its results in their order, and nothing else");
      return std::tuple<Results...>{wholes[r]...};
    }(std::index_sequence_for<Args...>(), std::index_sequence_for<Results...>());
  }

 private:
  struct Within {
    explicit Within(Parts& of) { parts = &of; }
    ~Within() { parts = nullptr; }
  };
};

// The schemas of an op and of its each.
template <class Library>
void define_with_each(Library& m, const std::string& name, const std::string& arguments, const std::string& results) {
  m.def((name + "(" + arguments + ") -> " + results).c_str());
  m.def((name + "_each(" + arguments + ", int n, int[] dims) -> " + results).c_str());
}

}  // namespace fastlstm
