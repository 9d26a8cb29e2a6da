// The motion field between two postures and the warp along it: the mathematics of one part, one cell and one axis, for
// the CPU and for the GPU.
//
// With M = softmax of the target's part logits over their K + 1 channels, u a cell's centre, and for each part the
// posture (p, A) of the source and (q, B) of the target, J = A B^-1:
//   moved_0 = u,   moved_k = p_k + J_k (u - q_k),   flow = sum_j M_j moved_j,
//   warped = source sampled bilinearly at flow,     visibility = 1 - (1 - M_0^s) M_0.
// With f = dflow (the incoming one and that of the sampling), G_k = sum_u M_k f and H_k = sum_u M_k f (u - q_k)^T:
//   dl_j(u) = M_j <f, moved_j - flow>,   dp_k = G_k,   dJ_k = H_k,   dq_k = -J_k^T G_k,
//   dl_j^s(u) = M_j^s (delta_j0 - M_0^s) M_0 dvisibility.
// docs/kernels/motion_warp.md derives it.
//
// V is a scalar on the GPU and a vector of cells on the CPU, C always the scalar computed in.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "part_moments.h"

namespace motarfuse {

// adj(B) / det(B), |det| being at least 1e-8 with its sign kept: B^-1 of any matrix, row-major.
template <class C>
struct Inverse2x2 {
  C value[4];
  C determinant;  // the one divided by
  bool clamped;

  MOTARFUSE_HOST_DEVICE explicit Inverse2x2(const C matrix[4]) {
    const C smallest = C(1e-8);
    determinant = matrix[0] * matrix[3] - matrix[1] * matrix[2];
    clamped = std::fabs(determinant) < smallest;
    if (clamped) determinant = std::copysign(smallest, determinant);
    value[0] = matrix[3] / determinant;
    value[1] = -matrix[1] / determinant;
    value[2] = -matrix[2] / determinant;
    value[3] = matrix[0] / determinant;
  }

  // dB of dB^-1; a determinant that was clamped takes none.
  MOTARFUSE_HOST_DEVICE void backward(const C matrix[4], const C grad[4], C grad_matrix[4]) const {
    C by_determinant = C(0);
    if (!clamped) {
      by_determinant = -((grad[0] * value[0] + grad[1] * value[1]) + (grad[2] * value[2] + grad[3] * value[3]));
      by_determinant /= determinant;
    }
    grad_matrix[0] = grad[3] / determinant + by_determinant * matrix[3];
    grad_matrix[1] = -grad[1] / determinant - by_determinant * matrix[2];
    grad_matrix[2] = -grad[2] / determinant - by_determinant * matrix[1];
    grad_matrix[3] = grad[0] / determinant + by_determinant * matrix[0];
  }
};

// A part's posture in the source (p, A) and in the target (q, B); matrices are row-major.
template <class C>
struct PosturePair {
  C source_x, source_y, source_affine[4];
  C target_x, target_y, target_affine[4];
};

// Eight numbers that say where a part's cells come from.
template <class C>
struct PartMotion {
  C source_x, source_y, target_x, target_y, jacobian[4];

  template <class V>
  MOTARFUSE_HOST_DEVICE V moved_x(V x, V y) const {
    return source_x + (jacobian[0] * (x - target_x) + jacobian[1] * (y - target_y));
  }

  template <class V>
  MOTARFUSE_HOST_DEVICE V moved_y(V x, V y) const {
    return source_y + (jacobian[2] * (x - target_x) + jacobian[3] * (y - target_y));
  }
};

template <class C>
MOTARFUSE_HOST_DEVICE PartMotion<C> part_motion(const PosturePair<C>& pair) {
  const Inverse2x2<C> inverse(pair.target_affine);
  PartMotion<C> motion;
  motion.source_x = pair.source_x;
  motion.source_y = pair.source_y;
  motion.target_x = pair.target_x;
  motion.target_y = pair.target_y;
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      motion.jacobian[2 * row + column] = pair.source_affine[2 * row] * inverse.value[column] +
                                          pair.source_affine[2 * row + 1] * inverse.value[2 + column];
    }
  }
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
  const C* const j = motion.jacobian;
  const C* const h = sums.by_offset;
  PosturePair<C> grad;
  grad.source_x = sums.x;
  grad.source_y = sums.y;
  grad.target_x = -(j[0] * sums.x + j[2] * sums.y);
  grad.target_y = -(j[1] * sums.x + j[3] * sums.y);
  C grad_inverse[4];
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      // dA = H B^-T, dB^-1 = A^T H.
      grad.source_affine[2 * row + column] =
          h[2 * row] * inverse.value[2 * column] + h[2 * row + 1] * inverse.value[2 * column + 1];
      grad_inverse[2 * row + column] =
          pair.source_affine[row] * h[column] + pair.source_affine[2 + row] * h[2 + column];
    }
  }
  inverse.backward(pair.target_affine, grad_inverse, grad.target_affine);
  return grad;
}

// Where a coordinate in [-1, 1] falls among the centres of `size` cells: two neighbours and the share of the second.
// Beyond the border's centres, and on them, the border is read and the position has no derivative.
template <class C>
struct AxisSample {
  int first, second;
  C weight;
  bool moves;

  MOTARFUSE_HOST_DEVICE AxisSample(C position, int size) {
    const C last = static_cast<C>(size - 1);
    C at = ((position + C(1)) * static_cast<C>(size) - C(1)) / C(2);
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

  MOTARFUSE_HOST_DEVICE BilinearSample(C flow_x, C flow_y, int height, int width)
      : x(flow_x, width), y(flow_y, height) {}

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
