// The motion field between two postures and the warp along it: the mathematics of one part, one cell and one axis, for
// the CPU and for the GPU.
//
// With M = softmax of the target's part logits over their K + 1 channels, u a cell's centre, and for each part the
// posture (p, A) of the source and (q, B) of the target, J = A B^-1:
//   d_0 = 0,   d_k(u) = p_k + J_k (u - q_k) - u = (p_k - q_k) + (J_k - I) (u - q_k),   d = sum_j M_j d_j,
//   flow = u + d,   warped = source sampled bilinearly at flow,   visibility = 1 - (1 - M_0^s) M_0.
// With f = dflow (the incoming one and that of the sampling), G_k = sum_u M_k f and H_k = sum_u M_k f (u - q_k)^T:
//   dl_j(u) = M_j <f, d_j - d>,   dp_k = G_k,   dJ_k = H_k,   dq_k = -J_k^T G_k,
//   dl_j^s(u) = M_j^s (delta_j0 - M_0^s) M_0 dvisibility.
// Displacements, not positions: they are small, and so is their rounding. docs/kernels/motion_warp.md derives it.
//
// V is a scalar on the GPU and a vector of cells on the CPU, C always the scalar computed in.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "part_moments.h"

namespace motarfuse {

// ab + cd with an error of about one unit in the last place, however much the two products cancel (Kahan): an error of
// J moves all cells of a part alike, and by as much as |J| is large.
template <class C>
MOTARFUSE_HOST_DEVICE C sum_of_products(C a, C b, C c, C d) {
  const C second = c * d;
  const C error = std::fma(c, d, -second);
  return std::fma(a, b, second) + error;
}

// B^-1 = adj(B) / det(B) of any matrix, row-major, |det| being at least 1e-8 with its sign kept.
template <class C>
struct Inverse2x2 {
  C adjugate[4];
  C determinant;  // the one divided by
  bool clamped;

  MOTARFUSE_HOST_DEVICE explicit Inverse2x2(const C matrix[4])
      : adjugate{matrix[3], -matrix[1], -matrix[2], matrix[0]} {
    const C smallest = C(1e-8);
    determinant = sum_of_products(matrix[0], matrix[3], -matrix[1], matrix[2]);
    clamped = std::fabs(determinant) < smallest;
    if (clamped) determinant = std::copysign(smallest, determinant);
  }

  // left B^-1 - I: one division, behind a product of numbers that are exact. B adj(B) is det I, so that the identity can
  // be taken off before the product, where what is left is small; not so with a clamped determinant.
  MOTARFUSE_HOST_DEVICE void times_less_identity(const C left[4], const C matrix[4], C product[4]) const {
    for (int row = 0; row < 2; ++row) {
      C factor[2] = {left[2 * row], left[2 * row + 1]};
      if (!clamped) {
        factor[0] -= matrix[2 * row];
        factor[1] -= matrix[2 * row + 1];
      }
      for (int column = 0; column < 2; ++column) {
        C& result = product[2 * row + column];
        result = sum_of_products(factor[0], adjugate[column], factor[1], adjugate[2 + column]) / determinant;
        if (clamped && row == column) result -= C(1);
      }
    }
  }

  // left B^-T.
  MOTARFUSE_HOST_DEVICE void times_transposed(const C left[4], C product[4]) const {
    for (int row = 0; row < 2; ++row) {
      for (int column = 0; column < 2; ++column) {
        product[2 * row + column] =
            sum_of_products(left[2 * row], adjugate[2 * column], left[2 * row + 1], adjugate[2 * column + 1]) /
            determinant;
      }
    }
  }

  // dB of dB^-1; a determinant that was clamped takes none.
  MOTARFUSE_HOST_DEVICE void backward(const C grad[4], C grad_matrix[4]) const {
    C by_determinant = C(0);
    if (!clamped) {
      by_determinant = sum_of_products(grad[0], adjugate[0], grad[1], adjugate[1]) +
                       sum_of_products(grad[2], adjugate[2], grad[3], adjugate[3]);
      by_determinant = -by_determinant / determinant / determinant;
    }
    // d det / dB is the adjugate, transposed.
    grad_matrix[0] = grad[3] / determinant + by_determinant * adjugate[0];
    grad_matrix[1] = -grad[1] / determinant + by_determinant * adjugate[2];
    grad_matrix[2] = -grad[2] / determinant + by_determinant * adjugate[1];
    grad_matrix[3] = grad[0] / determinant + by_determinant * adjugate[3];
  }
};

// A part's posture in the source (p, A) and in the target (q, B); matrices are row-major.
template <class C>
struct PosturePair {
  C source_x, source_y, source_affine[4];
  C target_x, target_y, target_affine[4];
};

// Eight numbers that say how a part's cells move: q, p - q and J - I.
template <class C>
struct PartMotion {
  C target_x, target_y, shift_x, shift_y, turn[4];

  template <class V>
  MOTARFUSE_HOST_DEVICE V displacement_x(V x, V y) const {
    return shift_x + (turn[0] * (x - target_x) + turn[1] * (y - target_y));
  }

  template <class V>
  MOTARFUSE_HOST_DEVICE V displacement_y(V x, V y) const {
    return shift_y + (turn[2] * (x - target_x) + turn[3] * (y - target_y));
  }
};

template <class C>
MOTARFUSE_HOST_DEVICE PartMotion<C> part_motion(const PosturePair<C>& pair) {
  PartMotion<C> motion;
  motion.target_x = pair.target_x;
  motion.target_y = pair.target_y;
  motion.shift_x = pair.source_x - pair.target_x;
  motion.shift_y = pair.source_y - pair.target_y;
  Inverse2x2<C>(pair.target_affine).times_less_identity(pair.source_affine, pair.target_affine, motion.turn);
  return motion;
}

// G and H of a part: sums over cells of M f and M f (u - q)^T.
template <class V>
struct MotionSums {
  V x, y, by_offset[4];

  MOTARFUSE_HOST_DEVICE void clear() {
    x = y = V{};
    for (int c = 0; c < 4; ++c) by_offset[c] = V{};
  }

  // `mask` and the flow's gradient at a cell with the offset u - q.
  MOTARFUSE_HOST_DEVICE void add(V mask, V grad_x, V grad_y, V offset_x, V offset_y) {
    const V weighted_x = mask * grad_x, weighted_y = mask * grad_y;
    x += weighted_x;
    y += weighted_y;
    by_offset[0] += weighted_x * offset_x;
    by_offset[1] += weighted_x * offset_y;
    by_offset[2] += weighted_y * offset_x;
    by_offset[3] += weighted_y * offset_y;
  }

  MOTARFUSE_HOST_DEVICE void merge(const MotionSums& other) {
    x += other.x;
    y += other.y;
    for (int c = 0; c < 4; ++c) by_offset[c] += other.by_offset[c];
  }
};

// A part's gradients of its sums.
template <class C>
MOTARFUSE_HOST_DEVICE PosturePair<C> posture_gradient(const PosturePair<C>& pair, const PartMotion<C>& motion,
                                                      const MotionSums<C>& sums) {
  const Inverse2x2<C> inverse(pair.target_affine);
  const C* const turn = motion.turn;
  const C* const h = sums.by_offset;
  PosturePair<C> grad;
  grad.source_x = sums.x;
  grad.source_y = sums.y;
  grad.target_x = -(sums.x + (turn[0] * sums.x + turn[2] * sums.y));
  grad.target_y = -(sums.y + (turn[1] * sums.x + turn[3] * sums.y));
  inverse.times_transposed(h, grad.source_affine);  // dA = H B^-T
  C grad_inverse[4];                                // dB^-1 = A^T H
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      grad_inverse[2 * row + column] =
          sum_of_products(pair.source_affine[row], h[column], pair.source_affine[2 + row], h[2 + column]);
    }
  }
  inverse.backward(grad_inverse, grad.target_affine);
  return grad;
}

// Where a cell that moves by a displacement falls among the centres of `size` cells: two neighbours and the share of the
// second. Its own centre is `index` there, exactly, and a coordinate unit is half a size. Beyond the border's centres,
// and on them, the border is read and the displacement has no derivative.
template <class C>
struct AxisSample {
  int first, second;
  C weight;
  bool moves;

  MOTARFUSE_HOST_DEVICE AxisSample(int index, C displacement, int size) {
    const C last = static_cast<C>(size - 1);
    C at = static_cast<C>(index) + displacement * (static_cast<C>(size) / C(2));
    moves = at > C(0) && at < last;
    if (!moves) at = at < C(0) ? C(0) : (at > last ? last : at);  // NaN stays
    const C whole = at == at ? std::floor(at) : C(0);
    first = static_cast<int>(whole);
    second = first + 1 < size ? first + 1 : size - 1;
    weight = at - whole;
  }

  // d at / d position: half a size within the borders.
  MOTARFUSE_HOST_DEVICE C slope(int size) const { return moves ? static_cast<C>(size) / C(2) : C(0); }
};

// Four cells and their shares.
template <class C>
struct BilinearSample {
  AxisSample<C> x, y;

  // Of the cell in `row` and `column`, which moves by a displacement.
  MOTARFUSE_HOST_DEVICE BilinearSample(int row, int column, C x, C y, int height, int width)
      : x(column, x, width), y(row, y, height) {}

  MOTARFUSE_HOST_DEVICE int upper_left(int width) const { return y.first * width + x.first; }
  MOTARFUSE_HOST_DEVICE int upper_right(int width) const { return y.first * width + x.second; }
  MOTARFUSE_HOST_DEVICE int lower_left(int width) const { return y.second * width + x.first; }
  MOTARFUSE_HOST_DEVICE int lower_right(int width) const { return y.second * width + x.second; }

  MOTARFUSE_HOST_DEVICE C weight_upper_left() const { return (C(1) - x.weight) * (C(1) - y.weight); }
  MOTARFUSE_HOST_DEVICE C weight_upper_right() const { return x.weight * (C(1) - y.weight); }
  MOTARFUSE_HOST_DEVICE C weight_lower_left() const { return (C(1) - x.weight) * y.weight; }
  MOTARFUSE_HOST_DEVICE C weight_lower_right() const { return x.weight * y.weight; }
};

// A channel of the four cells, differentiated with respect to the two `at`.
template <class C>
MOTARFUSE_HOST_DEVICE C sampled_by_x(C upper_left, C upper_right, C lower_left, C lower_right, C wy) {
  return (upper_right - upper_left) * (C(1) - wy) + (lower_right - lower_left) * wy;
}

template <class C>
MOTARFUSE_HOST_DEVICE C sampled_by_y(C upper_left, C upper_right, C lower_left, C lower_right, C wx) {
  return (lower_left - upper_left) * (C(1) - wx) + (lower_right - upper_right) * wx;
}

// How far the source could be seen where the target is; backgrounds are M_0 of the two.
template <class C>
MOTARFUSE_HOST_DEVICE C visibility(C source_background, C target_background) {
  return C(1) - (C(1) - source_background) * target_background;
}

}  // namespace motarfuse
