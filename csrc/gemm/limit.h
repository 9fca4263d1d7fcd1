// What a core can do at most, measured. Included by microkernel.h, and compiled for its instruction set.
namespace fastlstm::ISA {
namespace {

// Every register of a tile is a sum of its own, so that no multiply-add waits for another.
template <class T>
int64_t multiply_adds(int64_t times, T factor, T* sum) {
  using S = Simd<T>;
  constexpr int kSums = MAX_ROWS * MAX_VECTORS;
  const typename S::V term = typename S::V{} + T(1);
  typename S::V acc[kSums];
  for (int j = 0; j < kSums; j++) acc[j] = term * T(j);  // were they alike, one sum would do for all
  for (int64_t i = 0; i < times; i++)
#pragma GCC unroll 32
    for (int j = 0; j < kSums; j++) acc[j] = multiply_add(term, factor, acc[j]);
  typename S::V total{};
  for (int j = 0; j < kSums; j++) total += acc[j];
  *sum = total[0];
  return times * kSums * S::lanes;
}

}  // namespace
}  // namespace fastlstm::ISA
