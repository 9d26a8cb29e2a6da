// add_layer_norm on the CPU: rows over threads, channels over lanes. Each direction reads and writes its tensors once;
// what is passed over again is a row in the innermost cache.
//
// Sums over rows are kept for groups of rows, which are the same for any number of threads, and added in their order.
#include <optional>
#include <vector>

#include "../library.h"
#include "row_norm.h"

namespace motarfuse {
namespace {

template <class C>
struct AddNormForward {
  StridedRows x, residual, total, normed;
  const C* weight;
  const C* bias;
  const C* layer_scale;   // null: 1
  const C* sample_scale;  // null: 1
  C* mean;                // null: not kept
  C* rstd;
  int64_t rows_per_sample, channels;
  C eps;

  MOTARFUSE_INLINE C sample_scale_of(int64_t row) const {
    return sample_scale == nullptr ? C(1) : sample_scale[row / rows_per_sample];
  }
};

template <class C>
struct AddNormBackward {
  StridedRows grad_normed, grad_sum;  // no data: not given
  StridedRows x, residual, total;     // no data: not kept
  StridedRows grad_x, grad_residual;  // no data: not wanted
  const C* weight;
  const C* layer_scale;
  const C* sample_scale;
  const C* mean;
  const C* rstd;
  C* products;  // of a row's gradient with what the sample scale multiplies; null: not wanted
  RowSums<C>& sums;
  bool layer_learns;
  int64_t rows_per_sample, channels;

  MOTARFUSE_INLINE C sample_scale_of(int64_t row) const {
    return sample_scale == nullptr ? C(1) : sample_scale[row / rows_per_sample];
  }
};

template <class C>
struct AddNormLoops {
  void (*forward)(const AddNormForward<C>& call, int64_t begin, int64_t end);
  // By whether the sum has a gradient, and whether weight or bias takes one.
  void (*backward[2][2])(const AddNormBackward<C>& call, int64_t group);
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "add_layer_norm_rows.h"
#include "row_norm_variants.h"

namespace motarfuse {
namespace {

using Optional = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

template <class C>
void forward(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
             const Optional& layer_scale, const Optional& sample_scale, double eps, bool save_statistics,
             const AddNormResults& results) {
  const auto& [normed, total, mean, rstd] = results;
  const int64_t channels = x.size(x.dim() - 1), rows = x.numel() / channels;
  const VectorOf<C> weights(weight), biases(bias), layer_scales(layer_scale), sample_scales(sample_scale);
  const AddNormForward<C> call{strided_rows(x),
                               strided_rows(residual),
                               strided_rows(total),
                               strided_rows(normed),
                               weights.data(),
                               biases.data(),
                               layer_scales.data(),
                               sample_scales.data(),
                               save_statistics ? numbers_of<C>(mean) : nullptr,
                               save_statistics ? numbers_of<C>(rstd) : nullptr,
                               rows / x.size(0),
                               channels,
                               static_cast<C>(eps)};
  const AddNormLoops<C>& loops = best_loops<C>();
  parallel_rows(rows, channels, [&](int64_t begin, int64_t end) { loops.forward(call, begin, end); });
}

}  // namespace

AddNormResults add_layer_norm_forward_cpu(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                          const Tensor& bias, const Optional& layer_scale,
                                          const Optional& sample_scale, double eps, bool save_statistics) {
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(x.dim() - 1) > 0 && is_floating(x.scalar_type()),
                  "add_layer_norm: x must be floating-point rows of at least one channel");
  const auto shape = x.sizes();
  const ScalarType compute = compute_type(x.scalar_type());
  const auto leading = shape.slice(0, shape.size() - 1), vector = shape.slice(shape.size() - 1);
  STD_TORCH_CHECK(fits(residual, shape, compute) && fits(weight, vector, compute) && fits(bias, vector, compute) &&
                      fits(layer_scale, vector, compute) && fits(sample_scale, shape.slice(0, 1), compute),
                  "add_layer_norm: a tensor's shape or dtype does not fit x");
  const auto statistics = [&] { return new_or_none(x, leading, compute, save_statistics); };
  const AddNormResults results{torch::stable::new_empty(x, shape, x.scalar_type()),
                               torch::stable::new_empty(x, shape, residual.scalar_type()), statistics(), statistics()};
  if (x.numel() == 0) return results;
  const auto run = compute == ScalarType::Double ? forward<double> : forward<float>;
  run(x, residual, weight, bias, layer_scale, sample_scale, eps, save_statistics, results);
  return results;
}

namespace {

// In the order of the forward's tensors, as the bits of `needs`.
enum Gradient { kX, kResidual, kWeight, kBias, kLayerScale, kSampleScale, kGradients };

struct AddNormSaved {
  const Optional& x;
  const Optional& residual;
  const Optional& total;
  const Tensor& weight;
  const Optional& layer_scale;
  const Optional& sample_scale;
  const Tensor& mean;
  const Tensor& rstd;
};

// `wanted`: null where a gradient is not needed, or is zero.
template <class C>
void backward(const Optional& grad_normed, const Optional& grad_sum, const AddNormSaved& saved,
              const std::array<const Tensor*, kGradients>& wanted) {
  const int64_t channels = saved.weight.size(0), rows = saved.mean.numel(), samples = saved.mean.size(0);
  const bool remakes = grad_normed.has_value() && !saved.total.has_value();
  const bool scales_learn = wanted[kLayerScale] != nullptr || wanted[kSampleScale] != nullptr;
  STD_TORCH_CHECK((saved.x.has_value() || !(remakes || scales_learn)) && (saved.residual.has_value() || !remakes),
                  "add_layer_norm: the backward needs x, and the residual beside it or the sum");
  const auto view = [](const Tensor* tensor) { return tensor == nullptr ? StridedRows{} : strided_rows(*tensor); };
  const VectorOf<C> weights(saved.weight), layer_scales(saved.layer_scale), sample_scales(saved.sample_scale);
  const bool weighs = wanted[kWeight] != nullptr || wanted[kBias] != nullptr;
  RowSums<C> sums(rows, channels, 2 * weighs + (wanted[kLayerScale] != nullptr));
  std::vector<C> products(wanted[kSampleScale] != nullptr ? rows : 0);
  const AddNormBackward<C> call{strided_rows(grad_normed),
                                strided_rows(grad_sum),
                                remakes || scales_learn ? strided_rows(saved.x) : StridedRows{},
                                remakes ? strided_rows(saved.residual) : StridedRows{},
                                strided_rows(saved.total),
                                view(wanted[kX]),
                                view(wanted[kResidual]),
                                weights.data(),
                                layer_scales.data(),
                                sample_scales.data(),
                                numbers_of<C>(saved.mean),
                                numbers_of<C>(saved.rstd),
                                products.empty() ? nullptr : products.data(),
                                sums,
                                wanted[kLayerScale] != nullptr,
                                rows / samples,
                                channels};
  const auto run = best_loops<C>().backward[grad_sum.has_value()][weighs];
  parallel_rows(sums.groups(), sums.numbers(), [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) run(call, group);
  });
  if (wanted[kWeight] != nullptr) sums.write(0, *wanted[kWeight]);
  if (wanted[kBias] != nullptr) sums.write(1, *wanted[kBias]);
  if (wanted[kLayerScale] != nullptr) sums.write(2 * weighs, *wanted[kLayerScale]);
  if (const Tensor* const grad = wanted[kSampleScale]; grad != nullptr) {
    for (int64_t sample = 0; sample < samples; ++sample) {
      double total = 0.0;
      for (int64_t row = 0; row < rows / samples; ++row) total += products[sample * (rows / samples) + row];
      write_as(grad->data_ptr(), grad->scalar_type(), sample, static_cast<C>(total));
    }
  }
}

}  // namespace

AddNormGradients add_layer_norm_backward_cpu(const Optional& grad_normed, const Optional& grad_sum, const Optional& x,
                                             const Optional& residual, const Optional& total, const Tensor& weight,
                                             const Optional& layer_scale, const Optional& sample_scale,
                                             const Tensor& mean, const Tensor& rstd, ScalarType x_dtype,
                                             ScalarType bias_dtype, int64_t needs) {
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) > 0 && mean.dim() > 0,
                  "add_layer_norm: weight must be (C,), mean (B, ...)");
  check_statistics("add_layer_norm", mean, rstd);
  const ScalarType compute = mean.scalar_type();
  const auto leading = mean.sizes(), vector = weight.sizes(), samples = leading.slice(0, 1);
  std::vector<int64_t> shape(leading.begin(), leading.end());
  shape.push_back(weight.size(0));
  for (const Optional* rows : {&grad_normed, &grad_sum, &x, &residual, &total}) {
    STD_TORCH_CHECK(fits(*rows, shape, compute), "add_layer_norm: a tensor's shape or dtype does not fit mean");
  }
  STD_TORCH_CHECK(fits(weight, vector, compute) && fits(layer_scale, vector, compute) &&
                      fits(sample_scale, samples, compute) && computes_alike(x_dtype, compute) &&
                      computes_alike(bias_dtype, compute),
                  "add_layer_norm: a vector's shape or a dtype does not fit mean");
  const Optional& kept = total.has_value() ? total : residual;
  const auto type_of = [](const Optional& tensor, ScalarType otherwise) {
    return tensor.has_value() ? tensor->scalar_type() : otherwise;
  };
  const std::array<std::pair<Sizes, ScalarType>, kGradients> kinds{{{shape, x_dtype},
                                                                    {shape, type_of(kept, x_dtype)},
                                                                    {vector, weight.scalar_type()},
                                                                    {vector, bias_dtype},
                                                                    {vector, type_of(layer_scale, compute)},
                                                                    {samples, type_of(sample_scale, compute)}}};
  const auto gradient = [&](int index) {
    return new_or_none(mean, kinds[index].first, kinds[index].second, (needs >> index & 1) != 0);
  };
  const AddNormGradients gradients{gradient(kX),    gradient(kResidual),   gradient(kWeight),
                                   gradient(kBias), gradient(kLayerScale), gradient(kSampleScale)};
  const auto& [of_x, of_residual, of_weight, of_bias, of_layer, of_sample] = gradients;
  std::array<const Tensor*, kGradients> wanted{&of_x, &of_residual, &of_weight, &of_bias, &of_layer, &of_sample};
  const bool nothing = mean.numel() == 0 || !(grad_normed.has_value() || grad_sum.has_value());
  for (int index = 0; index < kGradients; ++index) {
    const bool is_zero = nothing || (!grad_normed.has_value() && (index == kWeight || index == kBias));
    if (is_zero) fill_with_zeros(*wanted[index]);
    if (is_zero || (needs >> index & 1) == 0) wanted[index] = nullptr;
  }
  if (std::all_of(wanted.begin(), wanted.end(), [](const Tensor* one) { return one == nullptr; })) return gradients;
  const auto run = compute == ScalarType::Double ? backward<double> : backward<float>;
  run(grad_normed, grad_sum, {x, residual, total, weight, layer_scale, sample_scale, mean, rstd}, wanted);
  return gradients;
}

}  // namespace motarfuse
