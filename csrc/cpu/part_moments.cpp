// part_moments on the CPU: rows over threads, cells over lanes. Each row is read twice (its maximum, then its sums)
// while it is in the cache; the backward reads and writes every cell once.
#include "../part_moments.h"

#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../part_moments_call.h"
#include "cells.h"
#include "simd.h"

namespace motarfuse {
namespace {

template <class C>
MOTARFUSE_INLINE C row_maximum(const C* logits, int64_t cells) {
  Vector<C> lanes[kChains];
  for (auto& chain : lanes) chain = splat(-static_cast<C>(INFINITY));
  int64_t i = 0;
  for (; i + kChains * kLanes<C> <= cells; i += kChains * kLanes<C>) {
    for (int c = 0; c < kChains; ++c) lanes[c] = maximum(lanes[c], load(logits + i + c * kLanes<C>));
  }
  C largest = horizontal_maximum<C>(maximum(maximum(lanes[0], lanes[1]), maximum(lanes[2], lanes[3])));
  for (; i < cells; ++i) largest = logits[i] > largest ? logits[i] : largest;
  return largest;
}

// weights_i = exp((logits_i - origin) / temperature) * factor
template <class C>
MOTARFUSE_INLINE void exponentials(const C* __restrict logits, int64_t cells, C origin,
                                   SplitFactor<C> inverse_temperature, C factor, C* __restrict weights) {
  for (int64_t i = 0; i < cells; ++i) {
    weights[i] = exp_nonpositive(inverse_temperature.times(logits[i] - origin)) * factor;
  }
}

template <class C>
MOTARFUSE_INLINE void add_positions(const C* weights, const CellTable<C>& table, int64_t cells, Moments<C>& row) {
  Moments<Vector<C>> total;
  total.clear();
  int64_t i = 0;
  while (i + kChains * kLanes<C> <= cells) {
    Moments<Vector<C>> chains[kChains];
    for (auto& chain : chains) chain.clear();
    const int64_t stop = std::min(cells, i + kBlock<C>);
    for (; i + kChains * kLanes<C> <= stop; i += kChains * kLanes<C>) {
      for (int c = 0; c < kChains; ++c) {
        const int64_t cell = i + c * kLanes<C>;
        chains[c].add(load(weights + cell), load(&table.x[cell]), load(&table.y[cell]));
      }
    }
    chains[0].merge(chains[2]);
    chains[1].merge(chains[3]);
    chains[0].merge(chains[1]);
    total.merge(chains[0]);
  }
  for (; i < cells; ++i) row.add(weights[i], table.x[i], table.y[i]);
  row.sum += horizontal_sum<C>(total.sum);
  row.square += horizontal_sum<C>(total.square);
  row.x += horizontal_sum<C>(total.x);
  row.y += horizontal_sum<C>(total.y);
}

template <class C>
MOTARFUSE_INLINE void forward_rows(const MomentsCall& call, const CellTable<C>& table, int64_t begin, int64_t end) {
  const int64_t cells = call.num_cells();
  const bool has_affine = call.affine.data != nullptr;
  const SplitFactor<C> inverse_temperature(call.inverse_temperature);
  std::vector<C> scratch(2 * cells);
  C* const weights = scratch.data() + cells;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / call.parts, part = index % call.parts;
    const C* logits = row_of_logits(call.logits, batch, part, cells, scratch.data());
    const C largest = row_maximum(logits, cells);
    exponentials(logits, cells, finite_maximum(largest), inverse_temperature, C(1), weights);
    Moments<C> row;
    row.clear();
    add_positions(weights, table, cells, row);
    if (has_affine) add_affines(call.affine, batch, part, cells, weights, row.affine);
    write_row(call, index, finish_row(row, largest, has_affine));
  }
}

template <class C>
struct StoreDeviations {
  const RowGradient<C>& gradient;
  const C* weights;
  const CellTable<C>& table;
  C* deviations;

  MOTARFUSE_INLINE void operator()(int64_t cell, const Vector<C> affine[4]) const {
    store(deviations + cell,
          gradient.deviation(load(weights + cell), load(&table.x[cell]), load(&table.y[cell]), affine));
  }
  MOTARFUSE_INLINE void operator()(int64_t cell, const C affine[4]) const {
    deviations[cell] = gradient.deviation(weights[cell], table.x[cell], table.y[cell], affine);
  }
};

template <class C>
MOTARFUSE_INLINE C weighted_sum(const C* weights, const C* values, int64_t cells) {
  Vector<C> lanes = {};
  int64_t i = 0;
  for (; i + kLanes<C> <= cells; i += kLanes<C>) lanes += load(weights + i) * load(values + i);
  C sum = horizontal_sum<C>(lanes);
  for (; i < cells; ++i) sum += weights[i] * values[i];
  return sum;
}

template <class C>
MOTARFUSE_INLINE void backward_rows(const MomentsCall& call, const CellTable<C>& table, int64_t begin, int64_t end) {
  const int64_t cells = call.num_cells();
  const SplitFactor<C> inverse_temperature(call.inverse_temperature);
  std::vector<C> scratch(2 * cells);
  C* const weights = scratch.data() + cells;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / call.parts, part = index % call.parts;
    const C* logits = row_of_logits(call.logits, batch, part, cells, scratch.data());
    const RowGradient<C> gradient = read_row_gradient<C>(call, index);
    exponentials(logits, cells, gradient.row.maximum, inverse_temperature, gradient.row.inverse_sum, weights);
    if (call.grad_logits.data != nullptr) {
      C* const derivatives = scratch.data();  // the logits are not needed any more
      if (call.affine.data != nullptr) {
        for_each_affine<C>(call.affine, batch, part, cells, StoreDeviations<C>{gradient, weights, table, derivatives});
      } else {
        for (int64_t i = 0; i < cells; ++i) derivatives[i] = gradient.deviation(weights[i], table.x[i], table.y[i]);
      }
      const C mean = weighted_sum(weights, derivatives, cells);
      for (int64_t i = 0; i < cells; ++i) derivatives[i] = gradient.logit(weights[i], derivatives[i], mean);
      store_row_of_logits(call.grad_logits, batch, part, cells, derivatives);
    }
    if (call.grad_affine.data != nullptr) {
      store_affines(call.grad_affine, batch, part, cells, weights, gradient.affine);
    }
  }
}

MOTARFUSE_VARIANTS(forward_float, (const MomentsCall& call, const CellTable<float>& table, int64_t begin, int64_t end),
                   (call, table, begin, end), forward_rows<float>(call, table, begin, end))

MOTARFUSE_VARIANTS(backward_float, (const MomentsCall& call, const CellTable<float>& table, int64_t begin, int64_t end),
                   (call, table, begin, end), backward_rows<float>(call, table, begin, end))

void forward_double(const MomentsCall& call, const CellTable<double>& table, int64_t begin, int64_t end) {
  forward_rows<double>(call, table, begin, end);
}

void backward_double(const MomentsCall& call, const CellTable<double>& table, int64_t begin, int64_t end) {
  backward_rows<double>(call, table, begin, end);
}

template <class C, class F>
void over_rows(const MomentsCall& call, const F& function) {
  if (call.num_rows() == 0) return;
  const CellTable<C> table(call.height, call.width);
  parallel_rows(call.num_rows(), call.num_cells(),
                [&](int64_t begin, int64_t end) { function(call, table, begin, end); });
}

}  // namespace

MomentResults part_moments_forward_cpu(const Tensor& logits, const std::optional<Tensor>& affine, int64_t height,
                                       int64_t width, double temperature, ScalarType dtype, bool save_statistics) {
  MomentsCall call = moments_call(logits, affine, height, width, temperature);
  MomentResults results = allocate_results(call, logits, dtype, save_statistics);
  if (call.logits.type == ScalarType::Double) {
    over_rows<double>(call, forward_double);
  } else {
    over_rows<float>(call, forward_float);
  }
  return results;
}

MomentGradients part_moments_backward_cpu(const Tensor& grad_keypoints, const Tensor& grad_affines,
                                          const Tensor& grad_confidence, const Tensor& logits,
                                          const std::optional<Tensor>& affine, const Tensor& statistics, int64_t height,
                                          int64_t width, double temperature, bool needs_logits, bool needs_affine) {
  MomentsCall call = moments_call(logits, affine, height, width, temperature);
  take_row_gradients(call, logits, grad_keypoints, grad_affines, grad_confidence, statistics);
  MomentGradients gradients = allocate_gradients(call, logits, affine, needs_logits, needs_affine);
  if (call.logits.type == ScalarType::Double) {
    over_rows<double>(call, backward_double);
  } else {
    over_rows<float>(call, backward_float);
  }
  return gradients;
}

}  // namespace motarfuse
