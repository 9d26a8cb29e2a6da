// temporal_conv on the CPU: a tile of tokens of a clip goes through its frames. What a tap reads is a row, which may be
// that of the frame itself (held) or zeros, so that all frames are one loop over taps. Forward and backward read x once
// from memory and write once; the backward computes the sums again, and dx follows it by (k - 1) / 2 frames, from the
// last k gradients. Sums over clips do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../views.h"
#include "gelu.h"
#include "gelu_rows.h"
#include "simd.h"
#include "temporal_conv_clips.h"

namespace motarfuse {
namespace {

// Numbers of a tile. A backward's taps, sums and gradients stay in the first-level cache; a forward has fewer of them,
// and its loops gain by length.
constexpr int64_t kForwardTile = 2048, kBackwardTile = 512;

// Loops --------------------------------------------------------------------------------------------------------------

// What becomes of a sum of taps: itself, its GELU, or GELU's derivative there times a gradient.
enum class Then { kKeep, kActivate, kDifferentiate };

template <int kTaps, Then kThen, class C>
MOTARFUSE_INLINE void add_up(const C* start, const Term<C>* terms, const C* grad_out, int64_t count, C* result) {
  const C* weights[kTaps];
  const C* rows[kTaps];
  for (int j = 0; j < kTaps; ++j) {
    weights[j] = terms[j].weights;
    rows[j] = terms[j].row;
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    C sum = start[i];
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j) sum += weights[j][i] * rows[j][i];
    if constexpr (kThen == Then::kActivate) sum = gelu<Activation::kGelu>(sum);
    if constexpr (kThen == Then::kDifferentiate) sum = gelu_derivative<Activation::kGelu>(sum) * grad_out[i];
    result[i] = sum;
  }
}

// start + sum over taps of weights * row, in the order of the taps whatever their number, and what becomes of it.
template <Then kThen, class C>
MOTARFUSE_INLINE void add_terms(const C* start, const Term<C>* terms, int64_t taps, const C* grad_out, int64_t count,
                                C* result) {
  if (taps == 1) return add_up<1, kThen>(start, terms, grad_out, count, result);
  if (taps == 3) return add_up<3, kThen>(start, terms, grad_out, count, result);
  add_up<3, Then::kKeep>(start, terms, grad_out, count, result);
  int64_t j = 3;
  for (; j + 2 < taps; j += 2) add_up<2, Then::kKeep>(result, terms + j, grad_out, count, result);
  add_up<2, kThen>(result, terms + j, grad_out, count, result);
}

template <int kTaps, class C>
MOTARFUSE_INLINE void add_products(const C* grad, const Term<C>* terms, int64_t count, C* sums, int64_t columns) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j) sums[j * columns + i] += grad[i] * terms[j].row[i];
  }
}

// The gradient of the sum of taps, and its sums over frames and tokens: `sums` (distinct + 1, columns), times what the
// first `distinct` taps read, and by itself for the bias.
template <class C>
MOTARFUSE_INLINE void differentiate(const C* bias, const Term<C>* terms, int64_t taps, int64_t distinct,
                                    const C* grad_out, int64_t count, C* grad, C* sums, int64_t columns) {
  add_terms<Then::kDifferentiate>(bias, terms, taps, grad_out, count, grad);
  if (sums == nullptr) return;
  int64_t j = 0;
  for (; j + 3 <= distinct; j += 3) add_products<3>(grad, terms + j, count, sums + j * columns, columns);
  for (; j < distinct; ++j) add_products<1>(grad, terms + j, count, sums + j * columns, columns);
  C* const sum = sums + distinct * columns;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) sum[i] += grad[i];
}

MOTARFUSE_VARIANTS(keep_float,
                   (const float* start, const Term<float>* terms, int64_t taps, int64_t count, float* total),
                   (start, terms, taps, count, total),
                   add_terms<Then::kKeep>(start, terms, taps, start, count, total))

MOTARFUSE_VARIANTS(activate_float,
                   (const float* start, const Term<float>* terms, int64_t taps, int64_t count, float* out),
                   (start, terms, taps, count, out),
                   add_terms<Then::kActivate>(start, terms, taps, start, count, out))

MOTARFUSE_VARIANTS(differentiate_float,
                   (const float* bias, const Term<float>* terms, int64_t taps, int64_t distinct,
                    const float* grad_out, int64_t count, float* grad, float* sums, int64_t columns),
                   (bias, terms, taps, distinct, grad_out, count, grad, sums, columns),
                   differentiate<float>(bias, terms, taps, distinct, grad_out, count, grad, sums, columns))

void add_terms_of(const float* start, const Term<float>* terms, int64_t taps, int64_t count, float* total) {
  keep_float(start, terms, taps, count, total);
}
void add_terms_of(const double* start, const Term<double>* terms, int64_t taps, int64_t count, double* total) {
  add_terms<Then::kKeep>(start, terms, taps, start, count, total);
}
void convolve(const float* bias, const Term<float>* terms, int64_t taps, int64_t count, float* out) {
  activate_float(bias, terms, taps, count, out);
}
void convolve(const double* bias, const Term<double>* terms, int64_t taps, int64_t count, double* out) {
  add_terms<Then::kActivate>(bias, terms, taps, bias, count, out);
}
void differentiate_of(const float* bias, const Term<float>* terms, int64_t taps, int64_t distinct,
                      const float* grad_out, int64_t count, float* grad, float* sums, int64_t columns) {
  differentiate_float(bias, terms, taps, distinct, grad_out, count, grad, sums, columns);
}
void differentiate_of(const double* bias, const Term<double>* terms, int64_t taps, int64_t distinct,
                      const double* grad_out, int64_t count, double* grad, double* sums, int64_t columns) {
  differentiate<double>(bias, terms, taps, distinct, grad_out, count, grad, sums, columns);
}

// Directions --------------------------------------------------------------------------------------------------------

template <class C>
void forward(const ClipSizes& sizes, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& frame_mask, const Tensor& out) {
  const ClipTiles<C> tiles(sizes, kForwardTile, weight, bias);
  const FrameMask mask(frame_mask);
  parallel_rows(tiles.count(), sizes.frames * tiles.columns(), [&](int64_t begin, int64_t end) {
    Frames<C> frames(ClipsView(x), tiles, mask);
    Results<C> results(ClipsView(out), tiles);
    std::vector<Term<C>> terms(sizes.taps);
    for (int64_t index = begin; index < end; ++index) {
      const ClipPart part = tiles.part(index);
      const int64_t count = part.tokens * sizes.channels;
      frames.take(part);
      for (int64_t t = 0; t < sizes.frames; ++t) {
        C* const target = results.begin(part, t);
        if (frames.row(t) == nullptr) {
          std::fill(target, target + count, C(0));
        } else {
          read_neighbours(tiles, frames, t, terms.data());
          convolve(tiles.bias(), terms.data(), sizes.taps, count, target);
        }
        results.end(target, count);
      }
    }
  });
}

// What is wanted of a backward; null where it is not.
struct Wanted {
  const Tensor* x;
  const Tensor* weight;
  const Tensor* bias;

  bool sums() const { return weight != nullptr || bias != nullptr; }
};

template <class C>
class Backward {
 public:
  Backward(const ClipTiles<C>& tiles, const Tensor& x, const Tensor& grad_out, const FrameMask& mask,
           const Wanted& wanted)
      : tiles_(tiles),
        frames_(ClipsView(x), tiles, mask),
        incoming_(ClipsView(grad_out), tiles, mask),
        results_(ClipsView(wanted.x == nullptr ? x : *wanted.x), tiles),
        writes_(wanted.x != nullptr),
        adds_(wanted.sums()),
        gradients_(tiles.sizes.taps * tiles.columns()),
        terms_(tiles.sizes.taps) {}

  void take(const ClipPart& part, ColumnSums<C>& sums) {
    const ClipSizes& sizes = tiles_.sizes;
    const int64_t count = part.tokens * sizes.channels;
    frames_.take(part);
    incoming_.take(part);
    for (int64_t t = 0; t < sizes.frames + sizes.radius(); ++t) {
      if (frames_.row(t) != nullptr) {
        read_neighbours(tiles_, frames_, t, terms_.data());
        differentiate_of(tiles_.bias(), terms_.data(), sizes.taps, sizes.distinct(), incoming_.row(t), count,
                         gradient(t), adds_ ? sums.data() : nullptr, tiles_.columns());
        sums.end_tile();
      }
      if (writes_ && t >= sizes.radius()) write(part, t - sizes.radius(), count);
    }
  }

 private:
  // The last k of them are kept.
  C* gradient(int64_t t) const { return gradients_.data() + t % tiles_.sizes.taps * tiles_.columns(); }

  // dx_s = sum over j of weight_j g_{s - j}; where frame s - j is not there, it is what tap -j of s would read: x_s is
  // held there, so that weight_{-j} g_s takes its place.
  void write(const ClipPart& part, int64_t s, int64_t count) {
    const ClipSizes& sizes = tiles_.sizes;
    C* const target = results_.begin(part, s);
    if (frames_.row(s) == nullptr) {
      std::fill(target, target + count, C(0));
    } else if (sizes.single()) {
      const Term<C> only{tiles_.all_taps(), gradient(s)};
      add_terms_of(tiles_.zeros(), &only, 1, count, target);
    } else {
      for (int64_t j = 0; j < sizes.taps; ++j) {
        const int64_t t = s + sizes.radius() - j;
        if (frames_.row(t) != nullptr) {
          terms_[j] = {tiles_.tap(j), gradient(t)};
        } else {
          terms_[j] = {tiles_.tap(sizes.taps - 1 - j), sizes.holds ? gradient(s) : tiles_.zeros()};
        }
      }
      add_terms_of(tiles_.zeros(), terms_.data(), sizes.taps, count, target);
    }
    results_.end(target, count);
  }

  const ClipTiles<C>& tiles_;
  Frames<C> frames_, incoming_;
  Results<C> results_;
  const bool writes_, adds_;
  Scratch<C> gradients_;
  std::vector<Term<C>> terms_;
};

template <class C>
void backward(const ClipSizes& sizes, const Tensor& grad_out, const Tensor& x, const Tensor& weight,
              const std::optional<Tensor>& bias, const std::optional<Tensor>& frame_mask, const Wanted& wanted) {
  const ClipTiles<C> tiles(sizes, kBackwardTile, weight, bias);
  const FrameMask mask(frame_mask);
  const int64_t columns = (sizes.distinct() + 1) * tiles.columns();
  const int64_t blocks = ColumnSums<C>::blocks_of(tiles.count(), sizes.numbers());
  const Scratch<double> totals(blocks * columns);
  parallel_rows(blocks, kCellsPerTask, [&](int64_t begin, int64_t end) {
    Backward<C> work(tiles, x, grad_out, mask, wanted);
    for (int64_t block = begin; block < end; ++block) {
      ColumnSums<C> sums(columns, totals.data() + block * columns);
      const int64_t last = (block + 1) * tiles.count() / blocks;
      for (int64_t index = block * tiles.count() / blocks; index < last; ++index) work.take(tiles.part(index), sums);
      sums.flush();
    }
  });
  const double* const sums = add_blocks(totals.data(), blocks, sizes.distinct() + 1, tiles.each, sizes.channels);
  for (int64_t j = 0; wanted.weight != nullptr && j < sizes.taps; ++j) {
    store_sums(sums + (sizes.single() ? 0 : j) * tiles.columns(), sizes.channels, *wanted.weight, j, sizes.taps);
  }
  if (wanted.bias != nullptr) store_sums(sums + sizes.distinct() * tiles.columns(), sizes.channels, *wanted.bias, 0, 1);
}

// Calls --------------------------------------------------------------------------------------------------------------

ClipSizes sizes_of(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& frame_mask, const std::string& missing) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 2, "temporal_conv: x must have 4 dimensions and weight 2");
  STD_TORCH_CHECK(missing == "hold" || missing == "zero", "temporal_conv: missing is hold or zero");
  const ClipSizes sizes{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(1), missing == "hold"};
  STD_TORCH_CHECK(weight.size(0) == sizes.channels && sizes.taps % 2 == 1,
                  "temporal_conv: weight must have an odd number of taps for each channel");
  STD_TORCH_CHECK(!bias.has_value() || has_shape(*bias, {sizes.channels}),
                  "temporal_conv: bias must have one number for each channel");
  STD_TORCH_CHECK(computes_alike(x.scalar_type(), weight.scalar_type()) &&
                      (!bias.has_value() || computes_alike(x.scalar_type(), bias->scalar_type())),
                  "temporal_conv: tensors must be of half types and float32, or all of float64");
  STD_TORCH_CHECK(!frame_mask.has_value() || (has_shape(*frame_mask, {sizes.batch, sizes.frames}) &&
                                              frame_mask->scalar_type() == ScalarType::Bool),
                  "temporal_conv: frame_mask must have a boolean for each frame");
  return sizes;
}

}  // namespace

Tensor temporal_conv_forward_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& frame_mask, std::string missing) {
  const ClipSizes sizes = sizes_of(x, weight, bias, frame_mask, missing);
  Tensor out = torch::stable::new_empty(x, x.sizes(), x.scalar_type());
  if (sizes.numbers() == 0) return out;
  const bool is_double = x.scalar_type() == ScalarType::Double;
  (is_double ? forward<double> : forward<float>)(sizes, x, weight, bias, frame_mask, out);
  return out;
}

ConvGradients temporal_conv_backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                         const std::optional<Tensor>& bias, const std::optional<Tensor>& frame_mask,
                                         std::string missing, bool needs_x, bool needs_weight, bool needs_bias) {
  const ClipSizes sizes = sizes_of(x, weight, bias, frame_mask, missing);
  STD_TORCH_CHECK(has_shape(grad_out, {sizes.batch, sizes.frames, sizes.tokens, sizes.channels}) &&
                      grad_out.scalar_type() == x.scalar_type(),
                  "temporal_conv: grad_out must have the shape and dtype of x");
  const Tensor& like = bias.has_value() ? *bias : weight;
  ConvGradients gradients{
      needs_x ? torch::stable::new_empty(x, x.sizes(), x.scalar_type()) : no_gradient(x),
      needs_weight ? new_empty(weight, {sizes.channels, sizes.taps}, weight.scalar_type()) : no_gradient(weight),
      needs_bias ? new_empty(like, {sizes.channels}, like.scalar_type()) : no_gradient(like)};
  auto& [grad_x, grad_weight, grad_bias] = gradients;
  if (sizes.numbers() == 0) {
    if (needs_weight) torch::stable::zero_(grad_weight);
    if (needs_bias) torch::stable::zero_(grad_bias);
    return gradients;
  }
  if (!needs_x && !needs_weight && !needs_bias) return gradients;
  const Wanted wanted{needs_x ? &grad_x : nullptr, needs_weight ? &grad_weight : nullptr,
                      needs_bias ? &grad_bias : nullptr};
  const bool is_double = x.scalar_type() == ScalarType::Double;
  (is_double ? backward<double> : backward<float>)(sizes, grad_out, x, weight, bias, frame_mask, wanted);
  return gradients;
}

}  // namespace motarfuse
