// What a kernel on tensor cores says in PTX: products of 16 x 8 x 16 tiles, loads and stores of their fragments,
// asynchronous copies, packed conversions, and the dynamic shared memory they work on, addressed by byte offsets.
// sm_80 and later.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../scalar_types.h"

namespace motarfuse {

constexpr int kWarpLanes = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char motarfuse_dynamic_shared[];
  return motarfuse_dynamic_shared;
}

__device__ __forceinline__ uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared())) + offset;
}

template <class V>
__device__ __forceinline__ V read_shared(uint32_t offset) {
  return *reinterpret_cast<const V*>(dynamic_shared() + offset);
}

template <class V>
__device__ __forceinline__ void write_shared(uint32_t offset, V value) {
  *reinterpret_cast<V*>(dynamic_shared() + offset) = value;
}

// 16 bytes from global memory, or zeros; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(uint32_t offset, const void* source, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(offset)),
               "l"(__cvta_generic_to_global(source)), "r"(exists ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit numbers. Lane 8 m + r gives the address of row r of matrix m; lane l receives, of every
// matrix, the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(offset))
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_transposed(uint32_t (&fragment)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(offset))
               : "memory");
}

// A 16 x 16 tile of 16-bit numbers from the fragment that it is as the first operand of a product.
__device__ __forceinline__ void store_tile(uint32_t offset, uint32_t row_bytes, const uint32_t (&fragment)[4]) {
  const int lane = threadIdx.x % kWarpLanes;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const uint32_t row = shared_address(offset + (lane % 16) * row_bytes + (lane / 16) * 16);
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(fragment[0]),
               "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
#else
  const uint32_t first = offset + (lane / 4) * row_bytes + (lane % 4) * 4;
#pragma unroll
  for (int m = 0; m < 4; ++m) write_shared(first + (m % 2) * 8 * row_bytes + (m / 2) * 16, fragment[m]);
#endif
}

// sums (16 x 8) += a (16 x 16) b (16 x 8), in float.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two numbers rounded to T, the first in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t packed;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t packed) {
  if constexpr (std::is_same_v<T, Half>) {
    float2 values;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(values.x), "=f"(values.y)
        : "r"(packed));
    return values;
  } else {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u)};
  }
}

// 2^x with 2 ulp; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace motarfuse
