// Runs calls of the portable micro-kernels that test_arm.py writes to the standard input, and writes what they left in their last array.
//
// A call: which function, the number of sizes, the number of arrays, the sizes, the lengths of the arrays (int64 each), then the arrays (float64).
#include <cstdio>
#include <cstring>
#include <vector>

#include "gemm/gemm.h"

using namespace fastlstm;

namespace {

template <class N>
bool read(std::vector<N>& to) {
  return std::fread(to.data(), sizeof(N), to.size(), stdin) == to.size();
}

template <class T>
void run(int64_t function, const std::vector<int64_t>& n, std::vector<std::vector<T>>& x) {
  const auto p = [&](size_t i) { return x[i].empty() ? nullptr : x[i].data(); };
  const auto block = [&](size_t i, size_t row) { return Block<const T>{p(i), n[row]}; };
  const auto micro = portable::path<T>();
  std::vector<int64_t> offsets;
  for (int64_t s = 0; function == 0 && s < n[3]; s++) offsets.push_back(s * n[6]);
  switch (function) {
    case 0:
      return micro.gemm({.m = n[0], .n = n[1], .k = n[2], .batch = n[3], .a = p(0), .a_m = n[4], .a_k = n[5], .a_offsets = offsets.data(),
                             .a2 = p(1), .a2_m = n[7], .k2 = n[8], .b = p(2), .b_k = n[9], .init = p(3), .init_m = n[10], .c = p(4),
                             .c_m = n[11], .accumulate = n[12] != 0, .block = n[13]});
    case 1: return micro.gemm_unpacked_t({n[0], n[1], n[2], p(0), n[3], p(1), n[4], p(2), n[5], p(3), n[6]});
    case 2: return micro.gemm_unpacked({n[0], n[1], n[2], p(0), n[3], n[4], p(1), n[5], p(2), n[6], n[7] != 0});
    case 3: return micro.copy(n[0], n[1], block(0, 2), {p(1), n[3]});
    case 4: return micro.add(n[0], n[1], block(0, 2), {p(1), n[3]});
    case 5: return micro.transpose(n[0], n[1], block(0, 2), {p(1), n[3]});
    case 6: return micro.dots(n[0], block(0, 1), block(1, 2), p(2));
  }
}

template <class T>
int run_all() {
  for (std::vector<int64_t> head(3); read(head);) {
    std::vector<int64_t> sizes(head[1]), lengths(head[2]);
    if (!read(sizes) || !read(lengths)) return 1;
    std::vector<std::vector<T>> arrays;
    for (const int64_t length : lengths) {
      std::vector<double> array(length);
      if (!read(array)) return 1;
      arrays.emplace_back(array.begin(), array.end());
    }
    run<T>(head[0], sizes, arrays);
    std::fwrite(arrays.back().data(), sizeof(T), arrays.back().size(), stdout);
  }
  return 0;
}

}  // namespace

int main(int, char** argv) { return std::strcmp(argv[1], "float32") == 0 ? run_all<float>() : run_all<double>(); }
