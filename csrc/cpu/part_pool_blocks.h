// The loops of part_pool over blocks of cells, in vectors as wide as the instruction set has. Included once for each
// instruction set, without a guard, with
//   MOTARFUSE_BLOCKS  the namespace,
//   MOTARFUSE_TARGET  the attribute that every function here carries: a function without it splits wide vectors,
//   MOTARFUSE_BYTES   of a vector,
//   MOTARFUSE_STREAM  a vector of float to memory past the caches, where there is such an instruction,
//   MOTARFUSE_TILE_PARTS  rows of sums that, two vectors each (three of 64 bytes), stay in registers.
#define MOTARFUSE_TARGET_INLINE MOTARFUSE_TARGET inline __attribute__((always_inline))

namespace motarfuse {
namespace MOTARFUSE_BLOCKS {

template <class C>
struct Wide;

template <>
struct Wide<float> {
  typedef float Vector __attribute__((vector_size(MOTARFUSE_BYTES)));
  typedef int32_t Index __attribute__((vector_size(MOTARFUSE_BYTES)));
};

template <>
struct Wide<double> {
  typedef double Vector __attribute__((vector_size(MOTARFUSE_BYTES)));
  typedef int64_t Index __attribute__((vector_size(MOTARFUSE_BYTES)));
};

template <class C>
using V = typename Wide<C>::Vector;

template <class C>
constexpr int kWidth = MOTARFUSE_BYTES / sizeof(C);

template <class C>
MOTARFUSE_TARGET_INLINE V<C> load_wide(const C* source) {
  V<C> v;
  std::memcpy(&v, source, sizeof(v));
  return v;
}

template <class C>
MOTARFUSE_TARGET_INLINE void store_wide(C* target, V<C> v) {
  std::memcpy(target, &v, sizeof(v));
}

// To an address that is a multiple of the vector's size, past the caches.
template <class C>
MOTARFUSE_TARGET_INLINE void stream_wide(C* target, V<C> v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<V<C>*>(target));
#elif defined(MOTARFUSE_STREAM)
  if constexpr (std::is_same_v<C, float>) {
    MOTARFUSE_STREAM(target, v);
  } else {
    store_wide(target, v);
  }
#else
  store_wide(target, v);
#endif
}

template <class C>
MOTARFUSE_TARGET_INLINE C sum_of_lanes(V<C> v) {
  C lanes[kWidth<C>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kWidth<C> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Sums of neighbouring groups of H lanes, those of a and b in turns: a0 + a1, b0 + b1, a2 + a3, ...
template <class C, int H, int... I>
MOTARFUSE_TARGET_INLINE V<C> add_neighbours(V<C> a, V<C> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const V<C> own = __builtin_shufflevector(a, b, (I + I / H % 2 * kWidth<C>)...);
  const V<C> neighbour = __builtin_shufflevector(a, b, (I / H % 2 ? I - H + kWidth<C> : I + H)...);
#else
  using Index = typename Wide<C>::Index;
  const V<C> own = __builtin_shuffle(a, b, Index{(I + I / H % 2 * kWidth<C>)...});
  const V<C> neighbour = __builtin_shuffle(a, b, Index{(I / H % 2 ? I - H + kWidth<C> : I + H)...});
#endif
  return own + neighbour;
}

// Lane i of the result is the sum of vector i's lanes.
template <class C, int H = kWidth<C> / 2>
MOTARFUSE_TARGET_INLINE V<C> sums_of_vectors(V<C>* vectors) {
  MOTARFUSE_UNROLL
  for (int i = 0; i < H; ++i) {
    vectors[i] = add_neighbours<C, H>(vectors[i], vectors[i + H], std::make_integer_sequence<int, kWidth<C>>{});
  }
  if constexpr (H > 1) return sums_of_vectors<C, H / 2>(vectors);
  return vectors[0];
}

template <class C>
MOTARFUSE_TARGET_INLINE V<C> exp_wide(V<C> x) {
  C lanes[kWidth<C>];
  store_wide<C>(lanes, x);
  for (int i = 0; i < kWidth<C>; ++i) lanes[i] = exp_nonpositive(lanes[i]);
  return load_wide<C>(lanes);
}

// In place: logits of whole vectors of cells (K + 1 rows) become masks.
template <class C>
MOTARFUSE_TARGET void softmax(int64_t parts, int64_t cells, C* rows) {
  for (int64_t i = 0; i < cells; i += kWidth<C>) {
    C* const first = rows + i;
    V<C> largest = load_wide(first), total = {};
    for (int64_t k = 1; k <= parts; ++k) {
      const V<C> logit = load_wide(first + k * kBlockCells);
      largest = logit > largest ? logit : largest;
    }
    for (int64_t k = 0; k <= parts; ++k) {
      const V<C> weight = exp_wide<C>(load_wide(first + k * kBlockCells) - largest);
      store_wide<C>(first + k * kBlockCells, weight);
      total += weight;
    }
    const V<C> factor = C(1) / total;
    for (int64_t k = 0; k <= parts; ++k) {
      store_wide<C>(first + k * kBlockCells, load_wide(first + k * kBlockCells) * factor);
    }
  }
}

// masses_k += sum over cells of masks_k; whole vectors of parts, those after the last one being zero.
template <class C>
MOTARFUSE_TARGET void add_masses(const C* masks, int64_t parts, int64_t cells, C* masses) {
  for (int64_t k = 0; k < parts; k += kWidth<C>) {
    V<C> sums[kWidth<C>] = {};
    for (int64_t j = 0; j < std::min<int64_t>(kWidth<C>, parts - k); ++j) {
      for (int64_t i = 0; i < cells; i += kWidth<C>) sums[j] += load_wide(masks + (k + j) * kBlockCells + i);
    }
    store_wide(masses + k, load_wide(masses + k) + sums_of_vectors<C>(sums));
  }
}

// P parts, Q vectors of channels: their sums over the rows, added to `sums`.
template <class C, int P, int Q>
MOTARFUSE_TARGET_INLINE void add_tile(const C* masks, const C* rows, int64_t stride, int64_t cells, C* sums,
                                      int64_t width) {
  V<C> tile[P][Q] = {};
  for (int64_t n = 0; n < cells; ++n) {
    V<C> row[Q];
    MOTARFUSE_UNROLL
    for (int q = 0; q < Q; ++q) row[q] = load_wide(rows + n * stride + q * kWidth<C>);
    MOTARFUSE_UNROLL
    for (int q = 0; q < Q; ++q) __builtin_prefetch(rows + (n + kRowsAhead) * stride + q * kWidth<C>, 0, 3);
    MOTARFUSE_UNROLL
    for (int p = 0; p < P; ++p) {
      MOTARFUSE_UNROLL
      for (int q = 0; q < Q; ++q) tile[p][q] += row[q] * masks[p * kBlockCells + n];
    }
  }
  MOTARFUSE_UNROLL
  for (int p = 0; p < P; ++p) {
    MOTARFUSE_UNROLL
    for (int q = 0; q < Q; ++q) {
      C* target = sums + p * width + q * kWidth<C>;
      store_wide(target, load_wide(target) + tile[p][q]);
    }
  }
}

template <class C, int P>
MOTARFUSE_TARGET_INLINE void add_parts(const C* masks, const C* rows, int64_t stride, int64_t cells, C* sums,
                                       int64_t width) {
  int64_t c = 0;
  if constexpr (MOTARFUSE_BYTES == 64) {
    // Twos where threes would leave a single vector, whose sums are too few to hide a multiplication's latency.
    for (; width - c >= 3 * kWidth<C> && width - c != 4 * kWidth<C>; c += 3 * kWidth<C>) {
      add_tile<C, P, 3>(masks, rows + c, stride, cells, sums + c, width);
    }
  }
  for (; width - c >= 2 * kWidth<C>; c += 2 * kWidth<C>) {
    add_tile<C, P, 2>(masks, rows + c, stride, cells, sums + c, width);
  }
  if (c < width) add_tile<C, P, 1>(masks, rows + c, stride, cells, sums + c, width);
}

// sums_k += sum over cells of masks_k x, a few rows at once: every row is then read from its beginning to its end, as
// processors fetch ahead, and few additions reach each number in memory.
template <class C>
MOTARFUSE_TARGET void add_rows(const C* masks, int64_t parts, const C* rows, int64_t stride, int64_t cells, C* sums,
                               int64_t width) {
  for (int64_t n = 0; n < cells; n += kRowsAtOnce) {
    const int64_t count = std::min<int64_t>(kRowsAtOnce, cells - n);
    int64_t k = 0;
    for (; k + MOTARFUSE_TILE_PARTS <= parts; k += MOTARFUSE_TILE_PARTS) {
      add_parts<C, MOTARFUSE_TILE_PARTS>(masks + k * kBlockCells + n, rows + n * stride, stride, count,
                                         sums + k * width, width);
    }
    for (; k < parts; k += kPartsAtOnce) {
      add_parts<C, kPartsAtOnce>(masks + k * kBlockCells + n, rows + n * stride, stride, count, sums + k * width,
                                 width);
    }
  }
}

// products_k(u) = <weights_k, x_u>, P parts and four cells at once.
template <class C, int P>
MOTARFUSE_TARGET_INLINE void multiply_tile(const C* weights, const C* const rows[kCellsAtOnce], int64_t ahead,
                                           int64_t width, C* products) {
  V<C> tile[kCellsAtOnce * P] = {};
  for (int64_t c = 0; c < width; c += kWidth<C>) {
    V<C> row[kCellsAtOnce];
    MOTARFUSE_UNROLL
    for (int n = 0; n < kCellsAtOnce; ++n) row[n] = load_wide(rows[n] + c);
    MOTARFUSE_UNROLL
    for (int n = 0; n < kCellsAtOnce; ++n) __builtin_prefetch(rows[n] + ahead + c, 0, 2);
    MOTARFUSE_UNROLL
    for (int p = 0; p < P; ++p) {
      const V<C> weight = load_wide(weights + p * width + c);
      MOTARFUSE_UNROLL
      for (int n = 0; n < kCellsAtOnce; ++n) tile[kCellsAtOnce * p + n] += row[n] * weight;
    }
  }
  C sums[kCellsAtOnce * P];
  MOTARFUSE_UNROLL
  for (int i = 0; i < kCellsAtOnce * P; i += kWidth<C>) store_wide(sums + i, sums_of_vectors<C>(tile + i));
  MOTARFUSE_UNROLL
  for (int p = 0; p < P; ++p) {
    std::memcpy(products + p * kBlockCells, sums + kCellsAtOnce * p, kCellsAtOnce * sizeof(C));
  }
}

// Whole fours of cells are written: the last ones repeat the last row.
template <class C>
MOTARFUSE_TARGET void multiply_rows(const C* weights, int64_t parts, const C* rows, int64_t stride, int64_t cells,
                                    int64_t width, C* products) {
  constexpr int kParts = kWidth<C> > kCellsAtOnce ? kWidth<C> / kCellsAtOnce : 1;
  for (int64_t n = 0; n < cells; n += kCellsAtOnce) {
    const C* four[kCellsAtOnce];
    for (int i = 0; i < kCellsAtOnce; ++i) four[i] = rows + std::min(n + i, cells - 1) * stride;
    for (int64_t k = 0; k < parts; k += kParts) {
      multiply_tile<C, kParts>(weights + k * width, four, kRowsAhead * stride, width, products + k * kBlockCells + n);
    }
  }
}

template <class C, int N, int Q, bool kStream>
MOTARFUSE_TARGET_INLINE void combine_tile(const C* masks, const C* weights, int64_t parts, int64_t width, C* rows,
                                          int64_t stride) {
  V<C> tile[N][Q] = {};
  if constexpr (!kStream) {
    // A processor fetches a line before it writes to it.
    MOTARFUSE_UNROLL
    for (int n = 0; n < N; ++n) {
      MOTARFUSE_UNROLL
      for (int q = 0; q < Q; ++q) __builtin_prefetch(rows + (n + kRowsAhead) * stride + q * kWidth<C>, 1, 3);
    }
  }
  for (int64_t k = 0; k < parts; ++k) {
    V<C> weight[Q];
    MOTARFUSE_UNROLL
    for (int q = 0; q < Q; ++q) weight[q] = load_wide(weights + k * width + q * kWidth<C>);
    MOTARFUSE_UNROLL
    for (int n = 0; n < N; ++n) {
      MOTARFUSE_UNROLL
      for (int q = 0; q < Q; ++q) tile[n][q] += weight[q] * masks[k * kBlockCells + n];
    }
  }
  MOTARFUSE_UNROLL
  for (int n = 0; n < N; ++n) {
    MOTARFUSE_UNROLL
    for (int q = 0; q < Q; ++q) {
      C* target = rows + n * stride + q * kWidth<C>;
      if constexpr (kStream) {
        stream_wide<C>(target, tile[n][q]);
      } else {
        store_wide<C>(target, tile[n][q]);
      }
    }
  }
}

template <class C, int N, bool kStream>
MOTARFUSE_TARGET_INLINE void combine_cells(const C* masks, const C* weights, int64_t parts, int64_t width, C* rows,
                                           int64_t stride) {
  int64_t c = 0;
  if constexpr (MOTARFUSE_BYTES == 64) {
    for (; width - c >= 4 * kWidth<C>; c += 4 * kWidth<C>) {
      combine_tile<C, N, 4, kStream>(masks, weights + c, parts, width, rows + c, stride);
    }
  }
  for (; width - c >= 2 * kWidth<C>; c += 2 * kWidth<C>) {
    combine_tile<C, N, 2, kStream>(masks, weights + c, parts, width, rows + c, stride);
  }
  if (c < width) combine_tile<C, N, 1, kStream>(masks, weights + c, parts, width, rows + c, stride);
}

template <class C, bool kStream>
MOTARFUSE_TARGET void combine_all(const C* masks, const C* weights, int64_t parts, int64_t cells, int64_t width,
                                  C* rows, int64_t stride) {
  int64_t n = 0;
  for (; n + kCellsAtOnce <= cells; n += kCellsAtOnce) {
    combine_cells<C, kCellsAtOnce, kStream>(masks + n, weights, parts, width, rows + n * stride, stride);
  }
  for (; n < cells; ++n) {
    combine_cells<C, 1, kStream>(masks + n, weights, parts, width, rows + n * stride, stride);
  }
}

// rows_u = sum_k masks_k(u) weights_k.
template <class C>
MOTARFUSE_TARGET void combine_rows(const C* masks, const C* weights, int64_t parts, int64_t cells, int64_t width,
                                   C* rows, int64_t stride, bool streams) {
  if (streams) {
    combine_all<C, true>(masks, weights, parts, cells, width, rows, stride);
  } else {
    combine_all<C, false>(masks, weights, parts, cells, width, rows, stride);
  }
}

// `products` of K rows become gradients of the masks, then of the logits, which take the place of the masks.
template <class C>
MOTARFUSE_TARGET void softmax_gradients(const C* constants, int64_t parts, int64_t cells, C* __restrict products,
                                        C* __restrict masks) {
  C mean[kBlockCells];
  for (int64_t i = 0; i < cells; ++i) mean[i] = 0;
  for (int64_t k = 0; k < parts; ++k) {
    C* __restrict product = products + k * kBlockCells;
    const C* mask = masks + (k + 1) * kBlockCells;
    for (int64_t i = 0; i < cells; ++i) {
      product[i] -= constants[k];
      mean[i] += mask[i] * product[i];
    }
  }
  for (int64_t i = 0; i < cells; ++i) masks[i] = softmax_gradient(masks[i], C(0), mean[i]);
  for (int64_t k = 0; k < parts; ++k) {
    const C* product = products + k * kBlockCells;
    C* __restrict mask = masks + (k + 1) * kBlockCells;
    for (int64_t i = 0; i < cells; ++i) mask[i] = softmax_gradient(mask[i], product[i], mean[i]);
  }
}

// Multiplies a row and returns its product with another before that.
template <class C>
MOTARFUSE_TARGET C scale_and_multiply(C* row, const C* other, int64_t channels, C factor) {
  V<C> chains[2] = {};
  C rest = 0;
  int64_t c = 0;
  for (; c + 2 * kWidth<C> <= channels; c += 2 * kWidth<C>) {
    MOTARFUSE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const V<C> v = load_wide(row + c + i * kWidth<C>);
      chains[i] += v * load_wide(other + c + i * kWidth<C>);
      store_wide(row + c + i * kWidth<C>, v * factor);
    }
  }
  for (; c < channels; ++c) {
    rest += row[c] * other[c];
    row[c] *= factor;
  }
  return sum_of_lanes<C>(chains[0] + chains[1]) + rest;
}

// total += sums; sums = 0.
template <class C>
MOTARFUSE_TARGET void move_sums(int64_t count, C* __restrict sums, C* __restrict total) {
  for (int64_t i = 0; i < count; ++i) {
    total[i] += sums[i];
    sums[i] = 0;
  }
}

template <class C>
MOTARFUSE_TARGET void scale(const C* source, int64_t count, C factor, C* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = source[i] * factor;
}

template <class C>
constexpr PoolBlocks<C> kBlocks = {kWidth<C>,        softmax<C>,      add_masses<C>,        add_rows<C>,
                                   multiply_rows<C>, combine_rows<C>, softmax_gradients<C>, scale_and_multiply<C>,
                                   move_sums<C>,     scale<C>};

}  // namespace MOTARFUSE_BLOCKS
}  // namespace motarfuse

#undef MOTARFUSE_TARGET_INLINE
#undef MOTARFUSE_BLOCKS
#undef MOTARFUSE_TARGET
#undef MOTARFUSE_BYTES
#undef MOTARFUSE_STREAM
#undef MOTARFUSE_TILE_PARTS
