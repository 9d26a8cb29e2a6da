// The rows of gated_fusion for one instruction set, included by row_norm_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

// exp(x) for x <= 0 and NaN.
template <class T>
MOTARFUSE_TARGET_INLINE T exponential(T x) {
  if constexpr (std::is_same_v<T, V<double>>) {
    // As exp_nonpositive of float, with 1 / n! up to n = 13: what follows is 4e-18.
    using Integer = Wide<double>::Integer;
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    constexpr int64_t kRoundBits = 0x4338000000000000;
    const T shifted = x * 1.4426950408889634 + kRound;
    const T k = shifted - kRound;
    const T r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double factorial = 6227020800.0;  // 13!
    T p = T{} + 1.0 / factorial;
    MOTARFUSE_UNROLL
    for (int n = 13; n > 0; --n) {
      factorial /= n;
      p = p * r + 1.0 / factorial;
    }
    Integer bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - (kRoundBits - 1023)) << 52;
    T scale;
    std::memcpy(&scale, &bits, sizeof(scale));
    return x < -708.0 ? T{} : p * scale;
  } else if constexpr (std::is_same_v<T, V<float>>) {
    float lanes[kWidth<float>];
    put(lanes, x);
    for (int i = 0; i < kWidth<float>; ++i) lanes[i] = exp_nonpositive(lanes[i]);
    return get<T>(lanes);
  } else {
    return exp_nonpositive(x);
  }
}

template <class T>
struct Gate {
  T value, slope;  // sigmoid and its derivative
};

// Without a difference of nearly equal numbers, or an infinity, where a gate is open or closed.
template <class T, class C>
MOTARFUSE_TARGET_INLINE Gate<T> gate_of(T logit) {
  const T small = exponential<T>(logit < C(0) ? logit : -logit);
  const T open = C(1) / (C(1) + small), closed = small * open;
  return {logit < C(0) ? closed : open, open * closed};
}

// x + sigmoid(gate) motion into `total`; returns the sum of it.
template <class C>
MOTARFUSE_TARGET_INLINE C add_gated(const C* x, const C* motion, const C* gate, int64_t channels, int64_t ahead,
                                    C* total) {
  return sum_channels<C, 1>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    prefetch(x, i, ahead);
    prefetch(motion, i, ahead);
    prefetch(gate, i, ahead);
    const T sum = get<T>(x + i) + gate_of<T, C>(get<T>(gate + i)).value * get<T>(motion + i);
    put(total + i, sum);
    sums[0] += sum;
  })[0];
}

template <class C>
MOTARFUSE_TARGET void forward_rows(const GatedForward<C>& call, int64_t begin, int64_t end) {
  const int64_t channels = call.channels, step = rows_at_once<C>(channels), ahead = step * channels;
  Rows<C> x(call.x, channels), motion(call.motion, channels), gate(call.gate, channels), out(call.out, channels);
  Buffer<C> totals(ahead);
  C sums[kRowsAtOnce];
  Statistics<C> known[kRowsAtOnce];
  for (int64_t first = begin; first < end; first += step) {
    const int64_t count = std::min(step, end - first);
    for (int64_t r = 0; r < count; ++r) {
      sums[r] = add_gated(x.read(first + r, r), motion.read(first + r, r), gate.read(first + r, r), channels, ahead,
                          totals.data() + r * channels);
    }
    for (int64_t r = 0; r < count; ++r) {
      known[r] = statistics(totals.data() + r * channels, channels, sums[r], call.eps);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      C* const result = out.target(index, r);
      normalise(totals.data() + r * channels, channels, known[r], call.weight, call.bias, result);
      out.write(index, result);
      if (call.mean != nullptr) {
        call.mean[index] = known[r].mean + known[r].error;
        call.rstd[index] = known[r].rstd;
      }
    }
  }
}

// What the backward makes again of a row.
template <class C>
struct GatedRow {
  C* normed;
  C* value;  // of the gates
  C* slope;
};

template <class C>
MOTARFUSE_TARGET_INLINE NormTranspose<C> remake(const C* grad, const C* x, const C* motion, const C* gate,
                                                const C* weight, int64_t channels, int64_t ahead, C mean, C rstd,
                                                const GatedRow<C>& row) {
  const auto found = sum_channels<C, 2>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    prefetch(grad, i, ahead);
    prefetch(x, i, ahead);
    prefetch(motion, i, ahead);
    prefetch(gate, i, ahead);
    const Gate<T> one = gate_of<T, C>(get<T>(gate + i));
    const T normed = ((get<T>(x + i) + one.value * get<T>(motion + i)) - mean) * rstd;
    const T g = get<T>(grad + i) * get<T>(weight + i);
    put(row.value + i, one.value);
    put(row.slope + i, one.slope);
    put(row.normed + i, normed);
    sums[0] += g;
    sums[1] += g * normed;
  });
  return {found, channels, rstd};
}

// Where a row's gradients go.
template <class C>
struct GatedGradients {
  C* x;
  C* motion;
  C* gate;
  C* weight;
  C* bias;
};

template <class C, bool kWeights>
MOTARFUSE_TARGET_INLINE void gated_gradients(const C* grad, const C* motion, const C* weight, const GatedRow<C>& row,
                                             int64_t channels, const NormTranspose<C>& transpose,
                                             const GatedGradients<C>& found) {
  for_channels<C>(channels, [&](int64_t i, auto* type) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    const T one = get<T>(grad + i), normed = get<T>(row.normed + i);
    const T gradient = transpose(one * get<T>(weight + i), normed);
    put(found.x + i, gradient);
    put(found.motion + i, get<T>(row.value + i) * gradient);
    put(found.gate + i, get<T>(row.slope + i) * get<T>(motion + i) * gradient);
    if constexpr (kWeights) {
      put(found.weight + i, get<T>(found.weight + i) + one * normed);
      put(found.bias + i, get<T>(found.bias + i) + one);
    }
  });
}

template <class C, bool kWeights>
MOTARFUSE_TARGET void backward_rows(const GatedBackward<C>& call, int64_t group) {
  const int64_t channels = call.channels, step = rows_at_once<C>(channels), ahead = step * channels;
  Rows<C> grad_out(call.grad_out, channels), x(call.x, channels), motion(call.motion, channels),
      gate(call.gate, channels), grad_x(call.grad_x, channels), grad_motion(call.grad_motion, channels),
      grad_gate(call.grad_gate, channels);
  Buffer<C> remade(3 * ahead), unwanted(channels);
  const C *grads[kRowsAtOnce], *motions[kRowsAtOnce];
  NormTranspose<C> transposes[kRowsAtOnce];
  const auto row_of = [&](int64_t r) {
    C* const row = remade.data() + 3 * r * channels;
    return GatedRow<C>{row, row + channels, row + 2 * channels};
  };
  const auto place = [&](Rows<C>& rows, int64_t index, int64_t r) {
    C* const target = rows.target(index, r);
    return target == nullptr ? unwanted.data() : target;
  };
  const int64_t end = call.sums.first_row(group + 1);
  for (int64_t first = call.sums.first_row(group); first < end; first += step) {
    const int64_t count = std::min(step, end - first);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      grads[r] = grad_out.read(index, r);
      motions[r] = motion.read(index, r);
      transposes[r] = remake(grads[r], x.read(index, r), motions[r], gate.read(index, r), call.weight, channels, ahead,
                        call.mean[index], call.rstd[index], row_of(r));
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      const GatedGradients<C> found{place(grad_x, index, r), place(grad_motion, index, r), place(grad_gate, index, r),
                                    kWeights ? call.sums.sum(group, 0) : nullptr,
                                    kWeights ? call.sums.sum(group, 1) : nullptr};
      gated_gradients<C, kWeights>(grads[r], motions[r], call.weight, row_of(r), channels, transposes[r],
                                   found);
      grad_x.write(index, found.x);
      grad_motion.write(index, found.motion);
      grad_gate.write(index, found.gate);
    }
  }
}

template <class C>
constexpr GatedLoops<C> kLoops = {forward_rows<C>, {backward_rows<C, false>, backward_rows<C, true>}};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
