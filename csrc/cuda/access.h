// Numbers that lie one after the other, read and written in words of up to 16 bytes, in the type computed in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../scalar_types.h"

namespace motarfuse {

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// `kCount` numbers that lie one after the other, in accesses of at most 16 bytes; the address is a multiple of their
// size.
template <int kCount, class T>
__device__ __forceinline__ void load_packed(const T* source, Compute<T> (&values)[kCount]) {
  constexpr int kBytes = kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16, kPerWord = kBytes / sizeof(T);
  using WordType = typename Word<kBytes>::Type;
#pragma unroll
  for (int w = 0; w < kCount / kPerWord; ++w) {
    const WordType word = __ldg(reinterpret_cast<const WordType*>(source) + w);
    T lanes[kPerWord];
    memcpy(lanes, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) values[w * kPerWord + i] = static_cast<Compute<T>>(lanes[i]);
  }
}

template <int kCount, class T>
__device__ __forceinline__ void store_packed(T* target, const Compute<T> (&values)[kCount]) {
  constexpr int kBytes = kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16, kPerWord = kBytes / sizeof(T);
  using WordType = typename Word<kBytes>::Type;
#pragma unroll
  for (int w = 0; w < kCount / kPerWord; ++w) {
    T lanes[kPerWord];
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) lanes[i] = static_cast<T>(values[w * kPerWord + i]);
    WordType word;
    memcpy(&word, lanes, sizeof(word));
    reinterpret_cast<WordType*>(target)[w] = word;
  }
}

}  // namespace motarfuse
