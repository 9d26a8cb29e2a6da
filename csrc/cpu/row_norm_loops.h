// Loops over the channels of a row, in vectors as wide as the instruction set has. Included once for each instruction
// set, without a guard, with
//   MOTARFUSE_LOOPS   the namespace,
//   MOTARFUSE_TARGET  the attribute that every function here carries: a function without it splits wide vectors,
//   MOTARFUSE_BYTES   of a vector,
//   MOTARFUSE_ROWS    the file with an operator's rows, which uses these loops.
// A loop's body is written once, for a vector and for the single channels at the end, as a function of a type T.
#define MOTARFUSE_TARGET_LAMBDA MOTARFUSE_TARGET __attribute__((always_inline))
#define MOTARFUSE_TARGET_INLINE inline MOTARFUSE_TARGET_LAMBDA

namespace motarfuse {
namespace {  // two operators have functions of the same names
namespace MOTARFUSE_LOOPS {

template <class C>
struct Wide;

template <>
struct Wide<float> {
  typedef float Vector __attribute__((vector_size(MOTARFUSE_BYTES)));
};

template <>
struct Wide<double> {
  typedef double Vector __attribute__((vector_size(MOTARFUSE_BYTES)));
  typedef int64_t Integer __attribute__((vector_size(MOTARFUSE_BYTES)));
};

template <class C>
using V = typename Wide<C>::Vector;

template <class C>
constexpr int kWidth = MOTARFUSE_BYTES / sizeof(C);

template <class T, class C>
MOTARFUSE_TARGET_INLINE T get(const C* source) {
  T value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class T, class C>
MOTARFUSE_TARGET_INLINE void put(C* target, T value) {
  std::memcpy(target, &value, sizeof(value));
}

template <class C>
MOTARFUSE_TARGET_INLINE C sum_of_lanes(V<C> v) {
  constexpr int kQuarters = MOTARFUSE_BYTES / 16;
  Vector<C> quarters[kQuarters];
  std::memcpy(quarters, &v, sizeof(v));
  for (int step = kQuarters / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) quarters[i] += quarters[i + step];
  }
  return horizontal_sum<C>(quarters[0]);
}

// body(channel, T*) for all channels; the pointer says the type alone.
template <class C, class F>
MOTARFUSE_TARGET_INLINE void for_channels(int64_t channels, const F& body) {
  int64_t i = 0;
  for (; i + kWidth<C> <= channels; i += kWidth<C>) body(i, static_cast<V<C>*>(nullptr));
  for (; i < channels; ++i) body(i, static_cast<C*>(nullptr));
}

// body(channel, T* sums) adds to K sums. Four chains hide the latency of an addition.
template <class C, int K, class F>
MOTARFUSE_TARGET_INLINE std::array<C, K> sum_channels(int64_t channels, const F& body) {
  constexpr int kChains = 4;
  V<C> chains[kChains][K] = {};
  C rest[K] = {};
  int64_t i = 0;
  for (; i + kChains * kWidth<C> <= channels; i += kChains * kWidth<C>) {
    body(i, chains[0]);
    body(i + kWidth<C>, chains[1]);
    body(i + 2 * kWidth<C>, chains[2]);
    body(i + 3 * kWidth<C>, chains[3]);
  }
  for (; i + kWidth<C> <= channels; i += kWidth<C>) body(i, chains[0]);
  for (; i < channels; ++i) body(i, rest);
  std::array<C, K> sums;
  for (int k = 0; k < K; ++k) {
    sums[k] = sum_of_lanes<C>((chains[0][k] + chains[2][k]) + (chains[1][k] + chains[3][k])) + rest[k];
  }
  return sums;
}

template <class C>
struct Statistics {
  C mean;
  C error;  // of the mean, which is rounded: beside a large common offset it is not small against the deviations
  C rstd;
};

// Asks for what lies `ahead` of a row's channels, in the row that takes its turn after those at the same step: while
// they are computed with, memory would have nothing to do.
template <class C>
MOTARFUSE_TARGET_INLINE void prefetch(const C* row, int64_t channel, int64_t ahead) {
  __builtin_prefetch(row + channel + ahead, 0, 3);
}

// Two passes, of a row in the cache; its sum is the first.
template <class C>
MOTARFUSE_TARGET_INLINE Statistics<C> statistics(const C* row, int64_t channels, C sum, C eps) {
  const C mean = sum / static_cast<C>(channels);
  const auto [first, second] = sum_channels<C, 2>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    const T deviation = get<T>(row + i) - mean;
    sums[0] += deviation;
    sums[1] += deviation * deviation;
  });
  const C error = first / static_cast<C>(channels);
  const C variance = second / static_cast<C>(channels) - error * error;
  return {mean, error, C(1) / std::sqrt((variance < C(0) ? C(0) : variance) + eps)};
}

template <class C>
MOTARFUSE_TARGET_INLINE void normalise(const C* row, int64_t channels, const Statistics<C>& known, const C* weight,
                                       const C* bias, C* normed) {
  for_channels<C>(channels, [&](int64_t i, auto* type) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    const T deviation = (get<T>(row + i) - known.mean) - known.error;
    put(normed + i, deviation * known.rstd * get<T>(weight + i) + get<T>(bias + i));
  });
}

// The transpose of a row's norm: factor (g - plain - y with_normed), of the means of g and of g y, g being the gradient
// of y.
template <class C>
struct NormTranspose {
  C plain, with_normed, factor;

  // A single channel is its own mean; what a fused multiply-add leaves of their difference would be divided by
  // sqrt(eps).
  NormTranspose() = default;
  NormTranspose(const std::array<C, 2>& sums, int64_t channels, C rstd)
      : plain(sums[0] / static_cast<C>(channels)),
        with_normed(sums[1] / static_cast<C>(channels)),
        factor(channels == 1 ? C(0) : rstd) {}

  template <class T>
  MOTARFUSE_TARGET_INLINE T operator()(T g, T normed) const {
    return (g - plain - normed * with_normed) * factor;
  }
};

template <class C>
MOTARFUSE_TARGET_INLINE NormTranspose<C> norm_transpose(const C* grad, const C* row, const C* weight, int64_t channels,
                                                        C mean, C rstd, int64_t ahead) {
  const auto sums = sum_channels<C, 2>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    prefetch(grad, i, ahead);
    prefetch(row, i, ahead);
    const T g = get<T>(grad + i) * get<T>(weight + i);
    sums[0] += g;
    sums[1] += g * ((get<T>(row + i) - mean) * rstd);
  });
  return {sums, channels, rstd};
}

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse

#include MOTARFUSE_ROWS

#undef MOTARFUSE_TARGET_INLINE
#undef MOTARFUSE_TARGET_LAMBDA
#undef MOTARFUSE_LOOPS
#undef MOTARFUSE_TARGET
#undef MOTARFUSE_BYTES
