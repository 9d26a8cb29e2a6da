// Functions marked MOTARFUSE_HOST_DEVICE are compiled for the CPU by the C++ compiler and for the GPU by nvcc: what a
// CPU test proves about their arithmetic holds on both.
#pragma once

#if defined(__CUDACC__)
#define MOTARFUSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MOTARFUSE_HOST_DEVICE inline __attribute__((always_inline))
#endif
