// The rows of add_layer_norm for one instruction set, included by row_norm_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

// residual + sample_scale layer_scale x into `total`; returns the sum of it.
template <class C>
MOTARFUSE_TARGET_INLINE C add_branch(const C* x, const C* residual, const C* layer_scale, C sample_scale,
                                     int64_t channels, C* total, int64_t ahead) {
  if (layer_scale == nullptr) {
    return sum_channels<C, 1>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
      using T = std::remove_pointer_t<decltype(sums)>;
      prefetch(x, i, ahead);
      prefetch(residual, i, ahead);
      const T sum = get<T>(residual + i) + get<T>(x + i) * sample_scale;
      put(total + i, sum);
      sums[0] += sum;
    })[0];
  }
  return sum_channels<C, 1>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    prefetch(x, i, ahead);
    prefetch(residual, i, ahead);
    const T sum = get<T>(residual + i) + get<T>(x + i) * get<T>(layer_scale + i) * sample_scale;
    put(total + i, sum);
    sums[0] += sum;
  })[0];
}

template <class C>
MOTARFUSE_TARGET void forward_rows(const AddNormForward<C>& call, int64_t begin, int64_t end) {
  const int64_t channels = call.channels;
  Rows<C> x(call.x, channels), residual(call.residual, channels), total(call.total, channels),
      normed(call.normed, channels);
  const int64_t step = rows_at_once<C>(channels);
  C sums[kRowsAtOnce];
  Statistics<C> known[kRowsAtOnce];
  for (int64_t first = begin; first < end; first += step) {
    const int64_t count = std::min(step, end - first);
    for (int64_t r = 0; r < count; ++r) {
      sums[r] = add_branch(x.read(first + r, r), residual.read(first + r, r), call.layer_scale,
                           call.sample_scale_of(first + r), channels, total.target(first + r, r), step * channels);
    }
    for (int64_t r = 0; r < count; ++r) {
      known[r] = statistics(total.target(first + r, r), channels, sums[r], call.eps);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      C *const sum = total.target(index, r), *const result = normed.target(index, r);
      normalise(sum, channels, known[r], call.weight, call.bias, result);
      total.write(index, sum);
      normed.write(index, result);
      if (call.mean != nullptr) {
        call.mean[index] = known[r].mean + known[r].error;
        call.rstd[index] = known[r].rstd;
      }
    }
  }
}

// The gradient of a row's sum, and what the row adds to the gradients of weight and bias.
template <class C, bool kSum, bool kWeights>
MOTARFUSE_TARGET_INLINE void norm_gradient(const C* grad, const C* grad_sum, const C* row, const C* weight,
                                           int64_t channels, C mean, C rstd, const NormTranspose<C>& transpose,
                                           int64_t ahead, C* result, C* grad_weight, C* grad_bias) {
  for_channels<C>(channels, [&](int64_t i, auto* type) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    const T one = get<T>(grad + i), normed = (get<T>(row + i) - mean) * rstd;
    T gradient = transpose(one * get<T>(weight + i), normed);
    if constexpr (kSum) {
      prefetch(grad_sum, i, ahead);
      gradient += get<T>(grad_sum + i);
    }
    put(result + i, gradient);
    if constexpr (kWeights) {
      put(grad_weight + i, get<T>(grad_weight + i) + one * normed);
      put(grad_bias + i, get<T>(grad_bias + i) + one);
    }
  });
}

// What x and the scales get of the gradient of a row's sum.
template <class C>
MOTARFUSE_TARGET_INLINE void scale_gradient(const C* gradient, const C* layer_scale, C sample_scale, int64_t channels,
                                            C* result) {
  for_channels<C>(channels, [&](int64_t i, auto* type) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    const T one = get<T>(gradient + i) * sample_scale;
    put(result + i, layer_scale == nullptr ? one : one * get<T>(layer_scale + i));
  });
}

template <class C>
MOTARFUSE_TARGET_INLINE void add_layer_gradient(const C* gradient, const C* x, C sample_scale, int64_t channels,
                                                C* grad_layer) {
  for_channels<C>(channels, [&](int64_t i, auto* type) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    put(grad_layer + i, get<T>(grad_layer + i) + get<T>(gradient + i) * get<T>(x + i) * sample_scale);
  });
}

template <class C>
MOTARFUSE_TARGET_INLINE C sample_gradient(const C* gradient, const C* x, const C* layer_scale, int64_t channels) {
  return sum_channels<C, 1>(channels, [&](int64_t i, auto* sums) MOTARFUSE_TARGET_LAMBDA {
    using T = std::remove_pointer_t<decltype(sums)>;
    const T one = get<T>(gradient + i) * get<T>(x + i);
    sums[0] += layer_scale == nullptr ? one : one * get<T>(layer_scale + i);
  })[0];
}

template <class C, bool kSum, bool kWeights>
MOTARFUSE_TARGET void backward_rows(const AddNormBackward<C>& call, int64_t group) {
  const int64_t channels = call.channels, step = rows_at_once<C>(channels), ahead = step * channels;
  Rows<C> grad_normed(call.grad_normed, channels), grad_sum(call.grad_sum, channels), x(call.x, channels),
      residual(call.residual, channels), total(call.total, channels), grad_x(call.grad_x, channels),
      grad_residual(call.grad_residual, channels);
  const bool remakes = call.residual.data != nullptr;
  Buffer<C> remade(remakes ? ahead : 0), unwanted(channels);
  C* const grad_weight = kWeights ? call.sums.sum(group, 0) : nullptr;
  C* const grad_bias = kWeights ? call.sums.sum(group, 1) : nullptr;
  C* const grad_layer = call.layer_learns ? call.sums.sum(group, kWeights ? 2 : 0) : nullptr;
  const C *grads[kRowsAtOnce], *sums[kRowsAtOnce], *branches[kRowsAtOnce];
  NormTranspose<C> transposes[kRowsAtOnce];
  const int64_t end = call.sums.first_row(group + 1);
  for (int64_t first = call.sums.first_row(group); first < end; first += step) {
    const int64_t count = std::min(step, end - first);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      branches[r] = x.read(index, r);
      grads[r] = grad_normed.read(index, r);
      if (grads[r] == nullptr) continue;
      sums[r] = total.read(index, r);
      if (remakes) {
        C* const sum = remade.data() + r * channels;
        add_branch(branches[r], residual.read(index, r), call.layer_scale, call.sample_scale_of(index), channels, sum,
                   ahead);
        sums[r] = sum;
      }
      transposes[r] =
          norm_transpose(grads[r], sums[r], call.weight, channels, call.mean[index], call.rstd[index], ahead);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = first + r;
      const C* const of_sum = kSum ? grad_sum.read(index, r) : nullptr;
      const C* gradient = of_sum;
      if (grads[r] != nullptr) {
        C* const result = call.grad_residual.data == nullptr ? unwanted.data() : grad_residual.target(index, r);
        norm_gradient<C, kSum, kWeights>(grads[r], of_sum, sums[r], call.weight, channels, call.mean[index],
                                         call.rstd[index], transposes[r], ahead, result, grad_weight, grad_bias);
        gradient = result;
      }
      grad_residual.write(index, gradient);
      const C sample_scale = call.sample_scale_of(index);
      if (call.grad_x.data != nullptr) {
        C* const result = grad_x.target(index, r);
        scale_gradient(gradient, call.layer_scale, sample_scale, channels, result);
        grad_x.write(index, result);
      }
      if (grad_layer != nullptr) add_layer_gradient(gradient, branches[r], sample_scale, channels, grad_layer);
      if (call.products != nullptr) {
        call.products[index] = sample_gradient(gradient, branches[r], call.layer_scale, channels);
      }
    }
  }
}

template <class C>
constexpr AddNormLoops<C> kLoops = {
    forward_rows<C>,
    {{backward_rows<C, false, false>, backward_rows<C, false, true>},
     {backward_rows<C, true, false>, backward_rows<C, true, true>}},
};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
