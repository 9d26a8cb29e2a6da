// Moments of a part's heat map: the mathematics of one row of cells, for the CPU and for the GPU.
//
// With e_i = exp((l_i - max l) / temperature), Z = sum e and P_i = e_i / Z over the N cells of a row:
//   keypoint = sum P u, affine = sum P a, confidence = sum P^2,
//   dl_i = P_i / temperature (g_i - sum_j P_j g_j), da_i = P_i dA, g_i = <dp, u_i> + <dA, a_i> + 2 dc P_i.
// The sum over j is <dp, p> + <dA, A> + 2 dc c, which the forward knows: the backward needs no reduction.
// docs/kernels/part_moments.md derives it.
//
// V is a scalar on the GPU and a vector of cells on the CPU, C always the scalar computed in.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace motarfuse {

// What the forward keeps of a row, in this order, in the dtype computed in.
constexpr int64_t kMomentStatistics = 9;

template <class C>
struct RowStatistics {
  C x, y;         // keypoint
  C affine[4];    // row-major
  C confidence;
  C maximum;      // largest logit; 0 where every cell is hidden
  C inverse_sum;  // 1 / Z; 0 where every cell is hidden, so that P is 0 there
};

// Centre of cell `index` of 1 / inverse_count cells that fill [-1, 1].
template <class C>
MOTARFUSE_HOST_DEVICE C cell_center(int index, C inverse_count) {
  return static_cast<C>(2 * index + 1) * inverse_count - C(1);
}

// The finite stand-in for a maximum: -inf minus -inf would be NaN.
template <class C>
MOTARFUSE_HOST_DEVICE C finite_maximum(C maximum) {
  return maximum == -static_cast<C>(INFINITY) ? C(0) : maximum;
}

// A factor as the sum of two numbers: one alone would be off by up to half a unit in its last place, and the
// exponential multiplies that error by the exponent.
template <class C>
struct SplitFactor {
  C high, low;

  explicit SplitFactor(double factor)
      : high(static_cast<C>(factor)), low(static_cast<C>(factor - static_cast<double>(high))) {}

  // difference * factor for a difference <= 0, to the last place where exp of it is not 0; -inf stays -inf.
  MOTARFUSE_HOST_DEVICE C times(C difference) const {
    const C product = difference * high;
    return product < C(-1000) ? product : product + difference * low;
  }
};

// Sums over cells, relative to the maximum that the exponentials were taken against.
template <class V>
struct Moments {
  V sum, square, x, y, affine[4];

  MOTARFUSE_HOST_DEVICE void clear() {
    sum = square = x = y = V{};
    for (int c = 0; c < 4; ++c) affine[c] = V{};
  }

  MOTARFUSE_HOST_DEVICE void add(V e, V cell_x, V cell_y) {
    sum += e;
    square += e * e;
    x += e * cell_x;
    y += e * cell_y;
  }

  MOTARFUSE_HOST_DEVICE void add_affine(V e, const V cell_affine[4]) {
    for (int c = 0; c < 4; ++c) affine[c] += e * cell_affine[c];
  }

  // Takes the sums to a maximum that is larger by -log(factor).
  MOTARFUSE_HOST_DEVICE void rescale(V factor) {
    sum *= factor;
    square *= factor * factor;
    x *= factor;
    y *= factor;
    for (int c = 0; c < 4; ++c) affine[c] *= factor;
  }

  MOTARFUSE_HOST_DEVICE void merge(const Moments& other) {
    sum += other.sum;
    square += other.square;
    x += other.x;
    y += other.y;
    for (int c = 0; c < 4; ++c) affine[c] += other.affine[c];
  }
};

// A row's results. Z is at least 1 where a cell is visible and 0 where none is; NaN goes through. Divisions, because
// the backward magnifies the error of a rounded reciprocal by 1 / temperature.
template <class C>
MOTARFUSE_HOST_DEVICE RowStatistics<C> finish_row(const Moments<C>& moments, C maximum, bool has_affine) {
  const bool hidden = moments.sum == C(0);
  const C divisor = hidden ? C(1) : moments.sum;
  RowStatistics<C> row;
  row.x = moments.x / divisor;
  row.y = moments.y / divisor;
  for (int c = 0; c < 4; ++c) {
    const C identity = c == 0 || c == 3 ? moments.sum / divisor : C(0);
    row.affine[c] = has_affine ? moments.affine[c] / divisor : identity;
  }
  row.confidence = moments.square / divisor / divisor;
  row.maximum = finite_maximum(maximum);
  row.inverse_sum = hidden ? C(0) : C(1) / divisor;
  return row;
}

// The incoming gradient of a row beside the row's own moments.
template <class C>
struct RowGradient {
  RowStatistics<C> row;
  C x, y, affine[4], twice_confidence, inverse_temperature;

  // g_i - sum_j P_j g_j as products with deviations from the moments, which are small where one cell has nearly all the
  // weight; the difference of the two sums would cancel there. Without affines, sum P is constant and has no term.
  template <class V>
  MOTARFUSE_HOST_DEVICE V deviation(V p, V cell_x, V cell_y) const {
    return x * (cell_x - row.x) + y * (cell_y - row.y) + twice_confidence * (p - row.confidence);
  }

  template <class V>
  MOTARFUSE_HOST_DEVICE V deviation(V p, V cell_x, V cell_y, const V cell_affine[4]) const {
    const V by_affine = (affine[0] * (cell_affine[0] - row.affine[0]) + affine[1] * (cell_affine[1] - row.affine[1])) +
                        (affine[2] * (cell_affine[2] - row.affine[2]) + affine[3] * (cell_affine[3] - row.affine[3]));
    return deviation(p, cell_x, cell_y) + by_affine;
  }

  // The derivative with respect to a cell's logit. `mean` is sum P deviation: 0 but for the moments' own rounding,
  // which shifts all deviations alike and which 1 / temperature magnifies. Half types need not know it.
  template <class V>
  MOTARFUSE_HOST_DEVICE V logit(V p, V deviation, C mean) const {
    return p * inverse_temperature * (deviation - mean);
  }
};

}  // namespace motarfuse
