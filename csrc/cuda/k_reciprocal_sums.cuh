// Sums over the threads of a block, by all of them together.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace motarfuse {

// Sum of this thread's value and those of the threads before it; `sums` has room for one a thread. Afterwards the last
// place of `sums` holds the sum of all, until the threads meet again.
template <int kThreads>
__device__ int64_t inclusive_sum(int64_t value, int64_t* sums) {
  const int thread = static_cast<int>(threadIdx.x);
  sums[thread] = value;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const int64_t more = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += more;
    __syncthreads();
  }
  return sums[thread];
}

}  // namespace motarfuse
