// Stands in for CUDA's header so that a .cu file compiles for the host: blocks run one after the other, the threads of
// a block as threads of the host, shuffles and __syncthreads by barriers. Packed loads check their alignment, as a GPU
// does. It shows that a kernel's indexing, reductions and edges are right, not how fast it is and nothing about memory
// ordering.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#undef __forceinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace emulation {

constexpr int kWarp = 32;

struct Index {
  unsigned x;
};

struct Block {
  explicit Block(unsigned threads) : all(threads), slots(threads) {
    for (unsigned w = 0; w < threads / kWarp; ++w) warps.push_back(std::make_unique<std::barrier<>>(kWarp));
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<double> slots;
};

inline std::unique_ptr<Block> block;
inline int multiprocessors = 132;

}  // namespace emulation

inline thread_local emulation::Index threadIdx, blockIdx;
inline emulation::Index gridDim;

inline void __syncthreads() { emulation::block->all.arrive_and_wait(); }

template <class T>
T __ldg(const T* source) {
  if (reinterpret_cast<uintptr_t>(source) % sizeof(T) != 0) std::abort();
  T value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class T>
T shuffle(T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(double));
  const unsigned first = threadIdx.x / emulation::kWarp * emulation::kWarp;
  auto& warp = *emulation::block->warps[threadIdx.x / emulation::kWarp];
  std::memcpy(&emulation::block->slots[threadIdx.x], &value, sizeof(value));
  warp.arrive_and_wait();
  std::memcpy(&value, &emulation::block->slots[first + source], sizeof(value));
  warp.arrive_and_wait();
  return value;
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const unsigned lane = threadIdx.x % emulation::kWarp, source = lane + distance;
  return shuffle(value, source < emulation::kWarp ? source : lane);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shuffle(value, threadIdx.x % emulation::kWarp ^ mask);
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMultiProcessorCount = 0;
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = emulation::multiprocessors;
  return cudaSuccess;
}

// kernel<<<blocks, threads, ...>>>(...) becomes launch(blocks, threads, [&] { kernel(...); }).
inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  gridDim.x = blocks;
  emulation::block = std::make_unique<emulation::Block>(threads);
  std::vector<std::thread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([=, &kernel] {
      threadIdx.x = thread;
      for (unsigned index = 0; index < blocks; ++index) {
        blockIdx.x = index;
        kernel();
        __syncthreads();
      }
    });
  }
  for (auto& thread : running) thread.join();
}

// Reached by ctypes: how large a machine the launch heuristics see.
extern "C" __attribute__((visibility("default"))) inline void set_multiprocessors(int count) {
  emulation::multiprocessors = count;
}
