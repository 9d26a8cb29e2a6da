// Stands in for CUDA's header so that a .cu file compiles for the host. Blocks run one after the other, and the threads
// of a block as fibers of one thread: a fiber runs until it needs the others of its warp (a shuffle, a matrix product)
// or of its block (__syncthreads). Packed loads and stores check their alignment, as a GPU does. Dynamic shared memory starts as
// NaN, and an access through read_shared and the like (mma.cuh) aborts if it is out of bounds, misaligned, or races
// with another warp since the last __syncthreads. It shows that a kernel's indexing, reductions and edges are right,
// not how fast it is.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#undef __forceinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one after the other

namespace emulation {
[[noreturn]] void fail(const char* what);

template <class W>
void store(W* target, const W& word) {
  if (reinterpret_cast<uintptr_t>(target) % sizeof(W) != 0) fail("misaligned store");
  std::memcpy(static_cast<void*>(target), &word, sizeof(W));
}
}  // namespace emulation

struct alignas(8) uint2 {
  uint32_t x, y;
  void operator=(const uint2& word) { emulation::store(this, word); }
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
  void operator=(const uint4& word) { emulation::store(this, word); }
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 << 10;

struct Index {
  unsigned x;
};

}  // namespace emulation

inline emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

struct Copy {
  uint32_t offset;
  const void* source;
};

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  bool started = false, done = false;
  std::vector<Copy> copies;  // under way
};

struct Warp {
  void* slots[kWarp];
  int arrived = 0;
  unsigned generation = 0;
};

// Who touched two bytes of shared memory last, and between which two __syncthreads.
struct Access {
  unsigned written = 0, read = 0;
  int writer = -1, reader = -1;  // warps; kMany readers
};
constexpr int kMany = -2;

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::vector<Access> accesses;
  unsigned epoch = 1, block_generation = 0;
  int threads = 0, arrived = 0, done = 0, idle = 0;
  const std::function<void()>* kernel = nullptr;
  jmp_buf finished;
  int multiprocessors = 132, shared_per_block = 227 << 10, shared_per_multiprocessor = 228 << 10;
};
inline Machine machine;

inline void run_fiber() {
  (*machine.kernel)();
  machine.fibers[threadIdx.x]->done = true;
  machine.idle = 0;
  if (++machine.done == machine.threads) _longjmp(machine.finished, 1);
  unsigned next = threadIdx.x;
  while (machine.fibers[next]->done) next = (next + 1) % machine.threads;
  threadIdx.x = next;
  Fiber& fiber = *machine.fibers[next];
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

__attribute__((noinline)) inline void switch_to(unsigned next) {
  if (++machine.idle > 4 * machine.threads + 64) fail("some threads of a warp or a block never arrive");
  if (next == threadIdx.x || machine.fibers[next]->done) return;
  if (_setjmp(machine.fibers[threadIdx.x]->jump) != 0) return;
  threadIdx.x = next;
  Fiber& fiber = *machine.fibers[next];
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// `perform` runs once, when every lane of the warp has given its slot.
template <class Slot, class F>
void whole_warp(Slot& mine, const F& perform) {
  const unsigned first = threadIdx.x / kWarp * kWarp, lane = threadIdx.x % kWarp;
  Warp& warp = machine.warps[threadIdx.x / kWarp];
  warp.slots[lane] = &mine;
  if (++warp.arrived == kWarp) {
    Slot* slots[kWarp];
    for (int l = 0; l < kWarp; ++l) slots[l] = static_cast<Slot*>(warp.slots[l]);
    perform(slots);
    warp.arrived = 0;
    ++warp.generation;
    machine.idle = 0;
    return;
  }
  const unsigned generation = warp.generation;
  while (warp.generation == generation) switch_to(first + (threadIdx.x + 1) % kWarp);
}

inline void touch(uint32_t offset, uint32_t bytes, bool write) {
  if (offset % bytes != 0) fail("misaligned access to shared memory");
  if (offset + bytes > machine.shared.size()) fail("access beyond shared memory");
  const int warp = threadIdx.x / kWarp;
  for (uint32_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
    Access& access = machine.accesses[i];
    if (access.written == machine.epoch && access.writer != warp) fail("a race with a write of another warp");
    if (write) {
      if (access.read == machine.epoch && access.reader != warp) fail("a race with a read of another warp");
      access.written = machine.epoch;
      access.writer = warp;
    } else {
      access.reader = access.read == machine.epoch && access.reader != warp ? kMany : warp;
      access.read = machine.epoch;
    }
  }
}

// kernel<<<blocks, threads, shared, ...>>>(...) becomes launch(blocks, threads, shared, [&] { kernel(...); }).
inline void launch(unsigned blocks, unsigned threads, size_t shared, const std::function<void()>& kernel) {
  if (threads == 0 || threads % kWarp != 0 || threads > 1024) fail("a block is not of whole warps");
  gridDim.x = blocks;
  blockDim.x = threads;
  machine.threads = threads;
  machine.kernel = &kernel;
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned index = 0; index < blocks; ++index) {
    blockIdx.x = index;
    machine.warps.assign(threads / kWarp, Warp());
    machine.shared.assign(shared, 0xFF);
    machine.accesses.assign((shared + 1) / 2, Access());
    machine.arrived = machine.done = machine.idle = 0;
    for (unsigned thread = 0; thread < threads; ++thread) {
      Fiber& fiber = *machine.fibers[thread];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, run_fiber, 0);
      fiber.started = fiber.done = false;
    }
    if (_setjmp(machine.finished) != 0) continue;
    threadIdx.x = 0;
    machine.fibers[0]->started = true;
    setcontext(&machine.fibers[0]->context);
  }
  for (unsigned thread = 0; thread < threads; ++thread) {
    if (!machine.fibers[thread]->copies.empty()) fail("a kernel ends with copies under way");
  }
}

}  // namespace emulation

inline void __syncthreads() {
  auto& machine = emulation::machine;
  if (++machine.arrived == machine.threads) {
    machine.arrived = machine.idle = 0;
    ++machine.block_generation;
    ++machine.epoch;
    return;
  }
  const unsigned generation = machine.block_generation;
  while (machine.block_generation == generation) emulation::switch_to((threadIdx.x + 1) % machine.threads);
}

inline void __syncwarp() {
  int nothing = 0;
  emulation::whole_warp(nothing, [](int**) {});
}

template <class T>
T __ldg(const T* source) {
  if (reinterpret_cast<uintptr_t>(source) % sizeof(T) != 0) emulation::fail("misaligned access to global memory");
  T value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  struct Slot {
    T value;
    int source;
  } slot{value, source};
  emulation::whole_warp(slot, [](Slot** slots) {
    T values[emulation::kWarp];
    for (int l = 0; l < emulation::kWarp; ++l) values[l] = slots[l]->value;
    for (int l = 0; l < emulation::kWarp; ++l) slots[l]->value = values[slots[l]->source % emulation::kWarp];
  });
  return slot.value;
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance) {
  const int lane = threadIdx.x % emulation::kWarp;
  return __shfl_sync(mask, value, lane + distance < emulation::kWarp ? lane + distance : lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, threadIdx.x % emulation::kWarp ^ bits);
}

inline bool __any_sync(unsigned, bool predicate) {
  bool slot = predicate;
  emulation::whole_warp(slot, [](bool** slots) {
    const bool any = std::any_of(slots, slots + emulation::kWarp, [](const bool* one) { return *one; });
    for (int l = 0; l < emulation::kWarp; ++l) *slots[l] = any;
  });
  return slot;
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  unsigned slot = predicate ? 1u : 0u;
  emulation::whole_warp(slot, [](unsigned** slots) {
    unsigned bits = 0;
    for (int l = 0; l < emulation::kWarp; ++l) bits |= *slots[l] << l;
    for (int l = 0; l < emulation::kWarp; ++l) *slots[l] = bits;
  });
  return slot;
}

template <class T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}

inline unsigned __match_any_sync(unsigned, int value) {
  int slot = value;
  emulation::whole_warp(slot, [](int** slots) {
    int values[emulation::kWarp];
    for (int l = 0; l < emulation::kWarp; ++l) values[l] = *slots[l];
    for (int l = 0; l < emulation::kWarp; ++l) {
      unsigned same = 0;
      for (int other = 0; other < emulation::kWarp; ++other) same |= (values[other] == values[l] ? 1u : 0u) << other;
      std::memcpy(slots[l], &same, sizeof(same));
    }
  });
  return static_cast<unsigned>(slot);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "" : "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::machine.shared_per_block ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& machine = emulation::machine;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = machine.multiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = machine.shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = machine.shared_per_multiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
  }
  return cudaSuccess;
}

// Reached by ctypes: how large a machine the host code sees.
extern "C" __attribute__((visibility("default"))) inline void set_multiprocessors(int count) {
  emulation::machine.multiprocessors = count;
}
extern "C" __attribute__((visibility("default"))) inline void set_shared_memory(int block, int multiprocessor) {
  emulation::machine.shared_per_block = block;
  emulation::machine.shared_per_multiprocessor = multiprocessor;
}
