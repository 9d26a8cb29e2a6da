// What both directions of part_pool share: 16 bytes of a cell's channels at a time, the masks of a cell from logits of
// any type, numbers in dynamic shared memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "../part_pool.h"
#include "../part_pool_call.h"
#include "access.h"
#include "mma.cuh"

namespace motarfuse {
namespace {

// Channels in 16 bytes, which is what a lane takes of a cell.
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void widen(const uint4& words, Compute<T> (&values)[kVector<T>]) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  } else {
    memcpy(values, &words, sizeof(words));
  }
}

// The next channels of a cell; those from `count` on are zero. `whole`: there are enough, in 16 aligned bytes.
template <class T>
__device__ __forceinline__ uint4 load_vector(const T* source, bool whole, int64_t stride, int count) {
  if (whole) return __ldg(reinterpret_cast<const uint4*>(source));
  T lanes[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i, source += stride) lanes[i] = i < count ? *source : static_cast<T>(0.0F);
  uint4 words;
  memcpy(&words, lanes, sizeof(words));
  return words;
}

template <class T>
__device__ __forceinline__ void store_vector(T* target, bool whole, int64_t stride, int count,
                                             const Compute<T> (&values)[kVector<T>]) {
  if (whole) return store_packed(target, values);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i < count) target[i * stride] = static_cast<T>(values[i]);
  }
}

// A vector's channels in the type computed in.
template <class C, int kCount>
__device__ __forceinline__ void store_numbers(C* target, bool whole, int count, const C (&values)[kCount]) {
  if (whole) return store_packed(target, values);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) target[i] = values[i];
  }
}

template <class C, int kCount>
__device__ __forceinline__ void load_numbers(const C* source, bool whole, int count, C (&values)[kCount]) {
  if (whole) return load_packed(source, values);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = i < count ? source[i] : C(0);
}

// 16-byte words of dynamic shared memory as numbers, and back, `apart` bytes from one word to the next.
template <class C, int kCount>
__device__ __forceinline__ void read_numbers(uint32_t offset, C (&values)[kCount], uint32_t apart = 16) {
  constexpr int kPerWord = 16 / sizeof(C);
  static_assert(kCount % kPerWord == 0);
#pragma unroll
  for (int w = 0; w < kCount / kPerWord; ++w) {
    const uint4 word = read_shared<uint4>(offset + w * apart);
    C lanes[kPerWord];
    memcpy(lanes, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) values[w * kPerWord + i] = lanes[i];
  }
}

template <class C, int kCount>
__device__ __forceinline__ void write_numbers(uint32_t offset, const C (&values)[kCount], uint32_t apart = 16) {
  constexpr int kPerWord = 16 / sizeof(C);
  static_assert(kCount % kPerWord == 0);
#pragma unroll
  for (int w = 0; w < kCount / kPerWord; ++w) {
    C lanes[kPerWord];
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) lanes[i] = values[w * kPerWord + i];
    uint4 word;
    memcpy(&word, lanes, sizeof(word));
    write_shared(offset + w * apart, word);
  }
}

// Calls function with the address of a number, as a pointer to its type. A switch here costs a few instructions a
// phase, a template over pairs of types would cost as many kernels as there are pairs.
template <class C, class F>
__device__ __forceinline__ void with_type(void* data, ScalarType type, int64_t offset, const F& function) {
  if constexpr (std::is_same_v<C, double>) {
    function(static_cast<double*>(data) + offset);
  } else {
    switch (type) {
      case ScalarType::Half: function(static_cast<Half*>(data) + offset); break;
      case ScalarType::BFloat16: function(static_cast<BFloat16*>(data) + offset); break;
      default: function(static_cast<float*>(data) + offset);
    }
  }
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Logits of a cell that are under way at once: the background and eight parts from memory, fewer from the cache, where
// their exponentials need registers.
constexpr int kLogitsFromMemory = 9, kLogitsFromCache = 3;

// function(i, logit) for the channels [from, to) of a cell, and with -inf for what is read beyond them.
template <class C, int kAtOnce, class L, class F>
__device__ __forceinline__ void for_each_logit(const L* logits, int64_t stride, int from, int to, const F& function) {
#pragma unroll 1
  for (int begin = from; begin < to; begin += kAtOnce) {
    C values[kAtOnce];
    const L* logit = logits + begin * stride;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, logit += stride) {
      values[i] = begin + i < to ? static_cast<C>(*logit) : -static_cast<C>(INFINITY);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) function(begin + i, values[i]);
  }
}

// give(channel, mask) for the channels [first, last) of one cell, out of the softmax over all of them. The logits are
// read three times, twice of them from the cache. NaN wherever torch.softmax is NaN.
template <class C, class L, class F>
__device__ __forceinline__ void softmax_of_cell(const L* logits, int64_t stride, int channels, int first, int last,
                                                const F& give) {
  C largest = -static_cast<C>(INFINITY), sum = C(0);
  for_each_logit<C, kLogitsFromMemory>(logits, stride, 0, channels,
                                       [&](int, C logit) { largest = fmax(largest, logit); });
  for_each_logit<C, kLogitsFromCache>(logits, stride, 0, channels,
                                      [&](int, C logit) { sum += exponential(logit - largest); });
  const C factor = C(1) / sum;
  for_each_logit<C, kLogitsFromCache>(logits, stride, first, last, [&](int channel, C logit) {
    const C mask = exponential(logit - largest) * factor;
    if (channel < last) give(channel, mask);
  });
}

}  // namespace
}  // namespace motarfuse
