// part_moments on the CPU: rows over threads, cells over lanes. Each row is read twice (its maximum, then its sums) while
// it is in the cache; the backward reads and writes every cell once.
#include "../part_moments.h"

#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../part_moments_call.h"
#include "cells.h"
#include "simd.h"

namespace motarfuse {
namespace {

// x and y of every cell, padded to whole vectors.
template <class C>
struct CellTable {
  std::vector<C> x, y;

  explicit CellTable(const MomentsCall& call) {
    const int64_t padded = call.num_cells() + kLanes<C>;
    x.assign(padded, C(0));
    y.assign(padded, C(0));
    for (int64_t row = 0; row < call.height; ++row) {
      for (int64_t column = 0; column < call.width; ++column) {
        x[row * call.width + column] = cell_center<C>(column, call.width);
        y[row * call.width + column] = cell_center<C>(row, call.height);
      }
    }
  }
};

template <class C>
MOTARFUSE_INLINE C row_maximum(const C* logits, int64_t cells) {
  Vector<C> largest = splat(-static_cast<C>(INFINITY));
  for (int64_t i = 0; i < cells; i += kLanes<C>) largest = maximum(largest, load_logits(logits + i, cells - i));
  return horizontal_maximum<C>(largest);
}

template <class C>
MOTARFUSE_INLINE void forward_rows(const MomentsCall& call, const CellTable<C>& table, int64_t begin, int64_t end) {
  const int64_t cells = call.num_cells();
  const bool has_affine = call.affine.data != nullptr;
  const C inverse_temperature = static_cast<C>(1.0 / call.temperature);
  std::vector<C> scratch(cells);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / call.parts, part = index % call.parts;
    const C* logits = row_of_logits(call.logits, batch, part, cells, scratch.data());
    const C largest = row_maximum(logits, cells);
    const Vector<C> origin = splat(finite_maximum(largest));
    Moments<Vector<C>> lanes;
    lanes.clear();
    for (int64_t i = 0; i < cells; i += kLanes<C>) {
      const Vector<C> logit = load_logits(logits + i, cells - i);
      const Vector<C> e = exp_nonpositive((logit - origin) * inverse_temperature);
      lanes.add(e, load(&table.x[i]), load(&table.y[i]));
      if (has_affine) {
        Vector<C> affine[4];
        load_affines<C>(call.affine, batch, part, i, cells - i, affine);
        lanes.add_affine(e, affine);
      }
    }
    Moments<C> row;
    row.sum = horizontal_sum<C>(lanes.sum);
    row.square = horizontal_sum<C>(lanes.square);
    row.x = horizontal_sum<C>(lanes.x);
    row.y = horizontal_sum<C>(lanes.y);
    for (int c = 0; c < 4; ++c) row.affine[c] = horizontal_sum<C>(lanes.affine[c]);
    write_row(call, index, finish_row(row, largest, has_affine));
  }
}

template <class C>
MOTARFUSE_INLINE void backward_rows(const MomentsCall& call, const CellTable<C>& table, int64_t begin, int64_t end) {
  const int64_t cells = call.num_cells();
  const bool has_affine = call.affine.data != nullptr;
  std::vector<C> scratch(cells);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / call.parts, part = index % call.parts;
    const C* logits = row_of_logits(call.logits, batch, part, cells, scratch.data());
    const RowStatistics<C> row = static_cast<const RowStatistics<C>*>(call.statistics)[index];
    const RowGradient<C> gradient = read_row_gradient(call, index, row);
    for (int64_t i = 0; i < cells; i += kLanes<C>) {
      const int64_t count = cells - i;
      const Vector<C> logit = load_logits(logits + i, count);
      const Vector<C> p = exp_nonpositive((logit - row.maximum) * gradient.inverse_temperature) * row.inverse_sum;
      if (call.grad_logits.data != nullptr) {
        const Vector<C> x = load(&table.x[i]), y = load(&table.y[i]);
        Vector<C> derivative;
        if (has_affine) {
          Vector<C> affine[4];
          load_affines<C>(call.affine, batch, part, i, count, affine);
          derivative = gradient.logit(p, x, y, affine);
        } else {
          derivative = gradient.logit(p, x, y);
        }
        store_logits<C>(call.grad_logits, batch, part, i, count, derivative);
      }
      if (call.grad_affine.data != nullptr) {
        store_affines<C>(call.grad_affine, batch, part, i, count, p, gradient.affine);
      }
    }
  }
}

// Clones cannot be templates.
MOTARFUSE_CLONES void forward_float(const MomentsCall& call, const CellTable<float>& table, int64_t begin, int64_t end) {
  forward_rows<float>(call, table, begin, end);
}

MOTARFUSE_CLONES void backward_float(const MomentsCall& call, const CellTable<float>& table, int64_t begin,
                                     int64_t end) {
  backward_rows<float>(call, table, begin, end);
}

void forward_double(const MomentsCall& call, const CellTable<double>& table, int64_t begin, int64_t end) {
  forward_rows<double>(call, table, begin, end);
}

void backward_double(const MomentsCall& call, const CellTable<double>& table, int64_t begin, int64_t end) {
  backward_rows<double>(call, table, begin, end);
}

template <class C, class F>
void over_rows(const MomentsCall& call, const F& function) {
  if (call.num_rows() == 0) return;
  const CellTable<C> table(call);
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
