// Products with matrices as they lie in memory. Included by microkernel.h, and compiled for its instruction set.
namespace fastlstm::ISA {
namespace {

// The sums of the lanes of v[0] ... v[N - 1], for N = lanes, in one vector; v is used up.
template <class T>
[[gnu::always_inline]] inline typename Simd<T>::V horizontal_sums(typename Simd<T>::V* v) {
  using S = Simd<T>;
#if defined(__clang__)
  typename S::V sums{};
  for (int j = 0; j < S::lanes; j++)
    for (int i = 0; i < S::lanes; i++) sums[j] += v[j][i];
  return sums;
#else
  // Pairs of neighbours are added, over and over: of two vectors, the even and the odd lanes
  typename S::I even, odd;
  for (int i = 0; i < S::lanes; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
#pragma GCC unroll 8
  for (int n = S::lanes; n > 1; n /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < n / 2; j++)
      v[j] = __builtin_shuffle(v[2 * j], v[2 * j + 1], even) + __builtin_shuffle(v[2 * j], v[2 * j + 1], odd);
  return v[0];
#endif
}

// What of v stands at `first` and after, zeros before.
template <class T>
[[gnu::always_inline]] inline typename Simd<T>::V from_lane(typename Simd<T>::V v, int64_t first) {
  using I = typename Simd<T>::I;
  I kept;
  for (int i = 0; i < Simd<T>::lanes; i++) kept[i] = i < first ? 0 : -1;
  return (typename Simd<T>::V)((I)v & kept);
}

// One row of a against `lanes` rows of w, or where w has fewer, WHOLE unset, against the `left` that there are.
template <class T, bool WHOLE>
void unpacked_t_row(const GemmUnpackedT<T>& d, const T* a, const T* w, int64_t left, const T* init, T* c) {
  using S = Simd<T>;
  const auto row = [&](int j) { return w + (WHOLE || j < left ? j : left - 1) * d.w_n; };  // the last one again and again
  typename S::V acc[S::lanes] = {};
  int64_t k = 0;
  for (; k + S::lanes <= d.k; k += S::lanes) {
    const typename S::V x = S::load(a + k);
#pragma GCC unroll 16
    for (int j = 0; j < S::lanes; j++) acc[j] += x * S::load(row(j) + k);
  }
  if (k > 0 && k < d.k) {  // the last terms, in a vector with some before them
    const int64_t last = d.k - S::lanes;
    const typename S::V x = from_lane<T>(S::load(a + last), k - last);
#pragma GCC unroll 16
    for (int j = 0; j < S::lanes; j++) acc[j] += x * from_lane<T>(S::load(row(j) + last), k - last);
    k = d.k;
  }
  typename S::V sums = horizontal_sums<T>(acc);
  for (; k < d.k; k++)
    for (int j = 0; j < S::lanes; j++) sums[j] += a[k] * row(j)[k];
  if constexpr (WHOLE) S::store(c, S::load(init) + sums);
  else
    for (int j = 0; j < left; j++) c[j] = init[j] + sums[j];
}

template <class T>
void gemm_unpacked_t(const GemmUnpackedT<T>& d) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t n = 0; n < d.n; n += lanes) {
    const auto f = n + lanes <= d.n ? unpacked_t_row<T, true> : unpacked_t_row<T, false>;
    for (int64_t m = 0; m < d.m; m++)
      f(d, d.a + m * d.a_m, d.w + n * d.w_n, d.n - n, d.init + m * d.init_m + n, d.c + m * d.c_m + n);
  }
}

// ROWS rows of a against `lanes` rows of w, a square block of which is turned in registers: each sum is one chain, as in a tile.
// Where w has only `left` rows, the others are zeros.
template <class T, int ROWS>
void in_order_rows(const GemmUnpackedT<T>& d, const T* a, const T* w, int64_t left, const T* init, T* c) {
  using S = Simd<T>;
  constexpr int64_t block = Gemm<T>{}.block, lanes = S::lanes;
  static_assert(block % lanes == 0);
  T square[lanes * lanes] = {};
  for (int64_t k = 0, end; k == 0 || k < d.k; k = end) {
    end = d.k - k < block ? d.k : k + block;
    typename S::V acc[ROWS];
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; m++) acc[m] = k ? typename S::V{} : S::load(init + m * d.init_m);
    int64_t i = k;
    for (; i + lanes <= end; i += lanes) {
      Block<const T> from{w + i, d.w_n};
      if (left < lanes) {
        for (int64_t j = 0; j < left; j++) S::store(square + j * lanes, S::load(w + j * d.w_n + i));
        from = {square, lanes};
      }
      typename S::V column[lanes];
      take_columns<T>(from, column);
#pragma GCC unroll 16
      for (int j = 0; j < lanes; j++)
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; m++) acc[m] = multiply_add(acc[m], a[m * d.a_m + i + j], column[j]);
    }
    for (; i < end; i++) {
      typename S::V column{};
      for (int j = 0; j < lanes && j < left; j++) column[j] = w[j * d.w_n + i];
      for (int m = 0; m < ROWS; m++) acc[m] = multiply_add(acc[m], a[m * d.a_m + i], column);
    }
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; m++) S::store(c + m * d.c_m, k ? S::load(c + m * d.c_m) + acc[m] : acc[m]);
  }
}

template <class T>
void gemm_in_order(const GemmUnpackedT<T>& d) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t n = 0, columns = (d.n + kPanel - 1) / kPanel * kPanel; n < columns; n += lanes)
    for (int64_t m = 0, rows; m < d.m; m += rows) {
      rows = d.m - m < 4 ? d.m - m : 4;
      const auto f = rows == 4 ? in_order_rows<T, 4> : rows == 3 ? in_order_rows<T, 3>
                     : rows == 2 ? in_order_rows<T, 2> : in_order_rows<T, 1>;
      f(d, d.a + m * d.a_m, d.w + n * d.w_n, d.n - n, d.init + m * d.init_m + n, d.c + m * d.c_m + n);
    }
}

// TERMS rows of w, each read once, for all rows of c; or where c has many, each of those from end to end.
template <class T, int TERMS>
void unpacked_terms(const GemmUnpacked<T>& g, const T* a, const T* w, bool add) {
  using S = Simd<T>;
  int64_t i = 0;
  if (g.m >= 8) {
    const int64_t whole = g.n / S::lanes * S::lanes;
    for (int64_t m = 0; m < g.m; m++) {
      T* const c = g.c + m * g.c_m;
      T x[TERMS];
#pragma GCC unroll 8
      for (int k = 0; k < TERMS; k++) x[k] = a[m * g.a_m + k * g.a_k];
      for (i = 0; i < whole; i += S::lanes) {
        typename S::V sum{};
#pragma GCC unroll 8
        for (int k = 0; k < TERMS; k++) sum += x[k] * S::load(w + k * g.w_k + i);
        S::store(c + i, add ? S::load(c + i) + sum : sum);
      }
    }
    i = whole;
  }
  for (; i + S::lanes <= g.n; i += S::lanes) {
    typename S::V row[TERMS];
#pragma GCC unroll 8
    for (int k = 0; k < TERMS; k++) row[k] = S::load(w + k * g.w_k + i);
    for (int64_t m = 0; m < g.m; m++) {
      typename S::V sum{};
#pragma GCC unroll 8
      for (int k = 0; k < TERMS; k++) sum += a[m * g.a_m + k * g.a_k] * row[k];
      T* const c = g.c + m * g.c_m + i;
      S::store(c, add ? S::load(c) + sum : sum);
    }
  }
  for (; i < g.n; i++)
    for (int64_t m = 0; m < g.m; m++) {
      T sum = 0;
      for (int k = 0; k < TERMS; k++) sum += a[m * g.a_m + k * g.a_k] * w[k * g.w_k + i];
      T* const c = g.c + m * g.c_m + i;
      *c = add ? *c + sum : sum;
    }
}

template <class T>
void gemm_unpacked(const GemmUnpacked<T>& g) {
  bool add = g.accumulate;
  for (int64_t m = 0; m < g.m && g.k == 0 && !add; m++)
    for (int64_t i = 0; i < g.n; i++) g.c[m * g.c_m + i] = 0;
  for (int64_t k = 0; k < g.k; add = true) {
    const int64_t left = g.k - k, terms = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const auto f = terms == 8 ? unpacked_terms<T, 8> : terms == 4 ? unpacked_terms<T, 4>
                   : terms == 2 ? unpacked_terms<T, 2> : unpacked_terms<T, 1>;
    f(g, g.a + k * g.a_k, g.w + k * g.w_k, add);
    k += terms;
  }
}

}  // namespace
}  // namespace fastlstm::ISA
