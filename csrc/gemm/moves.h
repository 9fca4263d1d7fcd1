// Copies, transposes, and sums of products of rows. Included by microkernel.h, and compiled for its instruction set.
namespace fastlstm::ISA {
namespace {

template <class T, bool ADD>
void move(int64_t rows, int64_t n, Block<const T> from, Block<T> to) {
  using S = Simd<T>;
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i += S::lanes) {
      const typename S::V v = S::load(from.p + m * from.row + i);
      T* out = to.p + m * to.row + i;
      S::store(out, ADD ? S::load(out) + v : v);
    }
}

// Of AVX2, within 16 bytes a CPU shuffles twice as many vectors as across them, and a load that takes two such parts needs no shuffle.
// (Of AVX-512 it is none faster: rows a power of two apart are looked up four times as often.)
constexpr int kShuffledBytes = VECTOR_BYTES == 32 ? 16 : VECTOR_BYTES;

// One vector of parts of kShuffledBytes that are `apart` values from each other.
template <class T>
[[gnu::always_inline]] inline typename Simd<T>::V load_parts(const T* p, [[maybe_unused]] int64_t apart) {
#if VECTOR_BYTES == 32
  const auto part = [](const T* at) { return _mm_loadu_ps(reinterpret_cast<const float*>(at)); };
  return (typename Simd<T>::V)_mm256_insertf128_ps(_mm256_castps128_ps256(part(p)), part(p + apart), 1);
#else
  return Simd<T>::load(p);
#endif
}

// v = the columns of a square block of `lanes` rows: of each part of its rows, vectors j and j + half are zipped, over and over.
template <class T>
[[gnu::always_inline]] inline void take_columns(Block<const T> from, typename Simd<T>::V* v) {
  using S = Simd<T>;
  constexpr int n = S::lanes;
#if !defined(__clang__)
  constexpr int part = kShuffledBytes / sizeof(T);
  typename S::I low, high;
  for (int i = 0; i < n; i++) {
    low[i] = i / part * part + i % part / 2 + i % 2 * n;
    high[i] = low[i] + part / 2;
  }
#pragma GCC unroll 2
  for (int first = 0; first < n; first += part) {
    typename S::V w[part], *const x = v + first;
#pragma GCC unroll 16
    for (int j = 0; j < part; j++) x[j] = load_parts(from.p + j * from.row + first, part * from.row);
#pragma GCC unroll 4
    for (int stage = 1; stage < part; stage *= 2) {
#pragma GCC unroll 16
      for (int j = 0; j < part / 2; j++) {
        w[2 * j] = __builtin_shuffle(x[j], x[j + part / 2], low);
        w[2 * j + 1] = __builtin_shuffle(x[j], x[j + part / 2], high);
      }
#pragma GCC unroll 16
      for (int j = 0; j < part; j++) x[j] = w[j];
    }
  }
#else
  for (int j = 0; j < n; j++)
    for (int i = 0; i < n; i++) v[j][i] = from.p[i * from.row + j];
#endif
}

template <class T>
[[gnu::always_inline]] inline void transpose_block(Block<const T> from, Block<T> to) {
  using S = Simd<T>;
  typename S::V v[S::lanes];
  take_columns<T>(from, v);
#pragma GCC unroll 16
  for (int j = 0; j < S::lanes; j++) S::store(to.p + j * to.row, v[j]);
}

template <class T>
void transpose(int64_t rows, int64_t columns, Block<const T> from, Block<T> to) {
  constexpr int64_t n = Simd<T>::lanes;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t i = 0; i < whole_rows; i += n)
    for (int64_t j = 0; j < whole_columns; j += n)
      transpose_block<T>({from.p + i * from.row + j, from.row}, {to.p + j * to.row + i, to.row});
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++) to.p[j * to.row + i] = from.p[i * from.row + j];
}

template <class T>
void dots(int64_t rows, Block<const T> a, Block<const T> b, T* sum) {
  using S = Simd<T>;
  for (int64_t i = 0; i < kPanel; i += S::lanes) {
    typename S::V total = S::load(sum + i);
    for (int64_t m0 = 0; m0 < rows; m0 += 16) {
      typename S::V part{};
      for (int64_t m = m0; m < rows && m < m0 + 16; m++) part += S::load(a.p + m * a.row + i) * S::load(b.p + m * b.row + i);
      total += part;
    }
    S::store(sum + i, total);
  }
}

}  // namespace
}  // namespace fastlstm::ISA
