// gated_fusion on the CPU: rows over threads, channels over lanes. Each direction reads and writes its tensors once;
// the backward makes gates and sums again.
#include <optional>
#include <vector>

#include "../library.h"
#include "row_norm.h"

#if defined(__clang__)
#define MOTARFUSE_UNROLL _Pragma("unroll")
#else
#define MOTARFUSE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace motarfuse {
namespace {

template <class C>
struct GatedForward {
  StridedRows x, motion, gate, out;
  const C* weight;
  const C* bias;
  C* mean;  // null: not kept
  C* rstd;
  int64_t channels;
  C eps;
};

template <class C>
struct GatedBackward {
  StridedRows grad_out, x, motion, gate;
  StridedRows grad_x, grad_motion, grad_gate;  // no data: not wanted
  const C* weight;
  const C* mean;
  const C* rstd;
  RowSums<C>& sums;
  int64_t channels;
};

template <class C>
struct GatedLoops {
  void (*forward)(const GatedForward<C>& call, int64_t begin, int64_t end);
  void (*backward[2])(const GatedBackward<C>& call, int64_t group);  // by whether weight or bias takes a gradient
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "gated_fusion_rows.h"
#include "row_norm_variants.h"

namespace motarfuse {
namespace {

// In the order of the forward's tensors, as the bits of `needs`.
enum Gradient { kX, kMotion, kGate, kWeight, kBias, kGradients };

struct GatedTensors {
  const Tensor& x;
  const Tensor& motion;
  const Tensor& gate;
  const Tensor& weight;
};

ScalarType check_tensors(const GatedTensors& tensors) {
  const auto& [x, motion, gate, weight] = tensors;
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(x.dim() - 1) > 0 && is_floating(x.scalar_type()),
                  "gated_fusion: x must be floating-point rows of at least one channel");
  const auto shape = x.sizes();
  const ScalarType compute = compute_type(x.scalar_type());
  STD_TORCH_CHECK(fits(motion, shape, compute) && fits(gate, shape, compute) &&
                      fits(weight, shape.slice(shape.size() - 1), compute),
                  "gated_fusion: a tensor's shape or dtype does not fit x");
  return compute;
}

template <class C>
void forward(const GatedTensors& tensors, const Tensor& bias, double eps, bool save_statistics,
             const GatedFusionResults& results) {
  const auto& [out, mean, rstd] = results;
  const VectorOf<C> weights(tensors.weight), biases(bias);
  const GatedForward<C> call{strided_rows(tensors.x),
                             strided_rows(tensors.motion),
                             strided_rows(tensors.gate),
                             strided_rows(out),
                             weights.data(),
                             biases.data(),
                             save_statistics ? numbers_of<C>(mean) : nullptr,
                             save_statistics ? numbers_of<C>(rstd) : nullptr,
                             bias.numel(),
                             static_cast<C>(eps)};
  const GatedLoops<C>& loops = best_loops<C>();
  parallel_rows(out.numel() / call.channels, 2 * call.channels,
                [&](int64_t begin, int64_t end) { loops.forward(call, begin, end); });
}

template <class C>
void backward(const Tensor& grad_out, const GatedTensors& tensors, const Tensor& mean, const Tensor& rstd,
              const std::array<const Tensor*, kGradients>& wanted) {
  const auto view = [](const Tensor* tensor) { return tensor == nullptr ? StridedRows{} : strided_rows(*tensor); };
  const bool weighs = wanted[kWeight] != nullptr || wanted[kBias] != nullptr;
  const int64_t channels = tensors.weight.size(0);
  const VectorOf<C> weights(tensors.weight);
  RowSums<C> sums(mean.numel(), channels, 2 * weighs);
  const GatedBackward<C> call{strided_rows(grad_out),
                              strided_rows(tensors.x),
                              strided_rows(tensors.motion),
                              strided_rows(tensors.gate),
                              view(wanted[kX]),
                              view(wanted[kMotion]),
                              view(wanted[kGate]),
                              weights.data(),
                              numbers_of<C>(mean),
                              numbers_of<C>(rstd),
                              sums,
                              channels};
  const auto run = best_loops<C>().backward[weighs];
  parallel_rows(sums.groups(), 2 * sums.numbers(), [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) run(call, group);
  });
  if (wanted[kWeight] != nullptr) sums.write(0, *wanted[kWeight]);
  if (wanted[kBias] != nullptr) sums.write(1, *wanted[kBias]);
}

}  // namespace

GatedFusionResults gated_fusion_forward_cpu(const Tensor& x, const Tensor& motion, const Tensor& gate_logits,
                                            const Tensor& weight, const Tensor& bias, double eps,
                                            bool save_statistics) {
  const GatedTensors tensors{x, motion, gate_logits, weight};
  const ScalarType compute = check_tensors(tensors);
  STD_TORCH_CHECK(fits(bias, weight.sizes(), compute), "gated_fusion: bias does not fit the weight");
  const auto shape = x.sizes();
  const auto statistics = [&] { return new_or_none(x, shape.slice(0, shape.size() - 1), compute, save_statistics); };
  const GatedFusionResults results{torch::stable::new_empty(x, shape, x.scalar_type()), statistics(), statistics()};
  if (x.numel() == 0) return results;
  const auto run = compute == ScalarType::Double ? forward<double> : forward<float>;
  run(tensors, bias, eps, save_statistics, results);
  return results;
}

GatedFusionGradients gated_fusion_backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& motion,
                                               const Tensor& gate_logits, const Tensor& weight, const Tensor& mean,
                                               const Tensor& rstd, ScalarType bias_dtype, int64_t needs) {
  const GatedTensors tensors{x, motion, gate_logits, weight};
  const ScalarType compute = check_tensors(tensors);
  check_statistics("gated_fusion", mean, rstd);
  const auto shape = x.sizes(), vector = weight.sizes();
  STD_TORCH_CHECK(fits(grad_out, shape, compute) && fits(mean, shape.slice(0, shape.size() - 1), compute) &&
                      computes_alike(bias_dtype, compute),
                  "gated_fusion: a gradient's or a statistic's shape or dtype does not fit x");
  const auto gradient = [&](int index, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
    return new_or_none(x, sizes, type, (needs >> index & 1) != 0);
  };
  const GatedFusionGradients gradients{
      gradient(kX, shape, x.scalar_type()), gradient(kMotion, shape, motion.scalar_type()),
      gradient(kGate, shape, gate_logits.scalar_type()), gradient(kWeight, vector, weight.scalar_type()),
      gradient(kBias, vector, bias_dtype)};
  const auto& [of_x, of_motion, of_gate, of_weight, of_bias] = gradients;
  std::array<const Tensor*, kGradients> wanted{&of_x, &of_motion, &of_gate, &of_weight, &of_bias};
  for (int index = 0; index < kGradients; ++index) {
    if (x.numel() == 0) fill_with_zeros(*wanted[index]);
    if ((needs >> index & 1) == 0) wanted[index] = nullptr;
  }
  const bool needed = std::any_of(wanted.begin(), wanted.end(), [](const Tensor* one) { return one != nullptr; });
  if (x.numel() == 0 || !needed) return gradients;
  const auto run = compute == ScalarType::Double ? backward<double> : backward<float>;
  run(grad_out, tensors, mean, rstd, wanted);
  return gradients;
}

}  // namespace motarfuse
