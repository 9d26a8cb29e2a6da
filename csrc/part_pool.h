// Mean token of each part: the mathematics of one cell and of one part, for the CPU and for the GPU.
//
// With M = softmax of the part logits over their K + 1 channels, S_k = sum_u M_k(u) and D_k = S_k + 1e-6, k >= 1:
//   pooled_k = sum_u M_k(u) x_u / D_k,   mass_k = S_k / N.
// With g_k = dpooled_k / D_k:
//   dx_u = sum_k M_k(u) g_k,
//   dM_k(u) = <g_k, x_u> - q_k,  q_k = <g_k, pooled_k> - dmass_k / N,  dM_0 = 0,
//   dl_j(u) = M_j(u) (dM_j(u) - sum_k M_k(u) dM_k(u)).
// docs/kernels/part_pool.md derives it.
//
// V is a scalar on the GPU and a vector of cells on the CPU, C always the scalar computed in.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace motarfuse {

// Added to a part's mass before it divides.
template <class C>
MOTARFUSE_HOST_DEVICE C pool_divisor(C total) {
  return total + C(1e-6);
}

// Without cells nothing has mass.
template <class C>
MOTARFUSE_HOST_DEVICE C pool_mass(C total, int64_t cells) {
  return total / static_cast<C>(cells > 0 ? cells : 1);
}

// q_k of <dpooled_k, pooled_k> and dmass_k.
template <class C>
MOTARFUSE_HOST_DEVICE C pool_constant(C product, C total, C grad_mass, int64_t cells) {
  return product / pool_divisor(total) - grad_mass / static_cast<C>(cells > 0 ? cells : 1);
}

// dl_j of a channel: its mask, its dM (0 for the background) and the sum of M dM over the channels.
template <class V>
MOTARFUSE_HOST_DEVICE V softmax_gradient(V mask, V grad_mask, V mean) {
  return mask * (grad_mask - mean);
}

}  // namespace motarfuse
