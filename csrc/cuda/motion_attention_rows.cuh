// Motion attention's rows in shared memory: their layout, what lies where in a block, and their way from and to global
// memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../motion_attention_call.h"
#include "../scalar_types.h"
#include "mma.cuh"

namespace motarfuse {

constexpr int kTile = 16;         // queries or keys of a tile
constexpr int kOwnTiles = 2;      // tiles of queries that a warp owns
constexpr int kMaxQueries = 256;  // 8 warps
constexpr int kUnitTiles = 3;     // tiles of keys that a warp takes at once in the second part, at most
constexpr int kSumThreads = 256;
constexpr float kLog2E = 1.44269504088896340736F;

// 168 registers, and so two blocks of 6 warps a multiprocessor, are enough up to d = 64.
template <int D>
constexpr int kMaxThreads = D <= 64 ? 384 : 256;

// A row of shared memory: query and grad_out or key and value, then motion as high parts, low parts, and room for a 1
// where 16 channels leave none for it.
template <int D>
struct Row {
  static constexpr int kSecond = 2 * D, kHigh = 4 * D, kLow = 4 * D + 32, kOnes = 4 * D + 64, kBytes = 4 * D + 80;
};

enum Wanted : int {
  kWantsQuery = 1,
  kWantsKey = 2,
  kWantsValue = 4,
  kWantsMotionQuery = 8,
  kWantsMotionKey = 16,
  kWantsMotionScale = 32,
  kWantsKeyBias = 64,
  kWantsMotionRows = kWantsMotionQuery | kWantsMotionScale,
  kWantsColumns = kWantsKey | kWantsMotionKey | kWantsKeyBias,
  kWantsScores = kWantsQuery | kWantsMotionRows | kWantsColumns,
};

// How a call is shared out, and where in shared memory what lies.
struct Plan {
  int query_tiles = 0, owners = 0, split = 1, chunk_tiles = 0, unit_tiles = 1, wanted = 0;
  uint32_t keys = 0, weights = 0, weight_bytes = 0, rows = 0, bias = 0, sums = 0, bytes = 0;

  int threads() const { return owners * split * kWarpLanes; }

  void place(int row_bytes) {
    const uint32_t queries = kTile * query_tiles, chunk = kTile * chunk_tiles;
    const uint32_t merged = split > 1 ? 1024 * owners * ((row_bytes - 80) / 32 + 2) : 0;
    weight_bytes = 4 * chunk + 16;
    keys = queries * row_bytes;
    weights = keys + chunk * row_bytes;
    rows = weights + std::max(queries * weight_bytes, merged);
    bias = rows + queries * 8;
    sums = bias + chunk * 4;
    bytes = sums + 256;
  }
};

// read(pointer) with the type of the numbers.
template <class T, class F>
__device__ __forceinline__ void with_type(const void* data, bool single, const F& read) {
  if (single) {
    read(static_cast<const float*>(data));
  } else {
    read(static_cast<const T*>(data));
  }
}

template <class T>
__device__ __forceinline__ float read_float(const FloatView& view, int64_t index) {
  return view.single ? static_cast<const float*>(view.data)[index]
                     : static_cast<float>(static_cast<const T*>(view.data)[index]);
}

template <class T>
__device__ __forceinline__ void write_float(void* data, bool single, int64_t index, float value) {
  if (single) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<T*>(data)[index] = static_cast<T>(value);
  }
}

// Lanes that share a row of tokens, 16 bytes each.
template <int D>
constexpr int kRowLanes = D <= 32 ? 4 : D <= 64 ? 8 : 16;

// Rows `first` on of a head of two tensors into shared memory, zeros where there is none.
template <class T, int D>
__device__ __forceinline__ void load_tokens(const TokenView& one, const TokenView& two, int batch, int head, int first,
                                            int count, int rows, int width, uint32_t target) {
  const int word = threadIdx.x % kRowLanes<D>, step = blockDim.x / kRowLanes<D>;
  if (word >= D / 8) return;
  const T* const base_one = static_cast<const T*>(one.data) + batch * one.batch + head * one.head;
  const T* const base_two = static_cast<const T*>(two.data) + batch * two.batch + head * two.head;
  int row = threadIdx.x / kRowLanes<D>;
  const int existing = 8 * word < width ? count - first : 0;
  uint32_t offset = target + row * Row<D>::kBytes + 16 * word;
  if (one.words && two.words) {
    const uint32_t bytes_one = sizeof(T) * static_cast<uint32_t>(one.token);
    const uint32_t bytes_two = sizeof(T) * static_cast<uint32_t>(two.token);
    uint32_t source_one = (first + row) * bytes_one + 16 * word, source_two = (first + row) * bytes_two + 16 * word;
#pragma unroll 2
    for (; row < rows; row += step, offset += step * Row<D>::kBytes) {
      copy_async(offset, reinterpret_cast<const char*>(base_one) + source_one, row < existing);
      copy_async(offset + Row<D>::kSecond, reinterpret_cast<const char*>(base_two) + source_two, row < existing);
      source_one += step * bytes_one;
      source_two += step * bytes_two;
    }
    return;
  }
#pragma unroll 1
  for (; row < rows; row += step, offset += step * Row<D>::kBytes) {
#pragma unroll 1
    for (int second = 0; second < 2; ++second) {
      const TokenView& view = second == 0 ? one : two;
      const T* source = (second == 0 ? base_one : base_two) + (first + row) * view.token + 8 * word * view.channel;
      T lanes[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) lanes[i] = row < existing ? source[i * view.channel] : static_cast<T>(0.0F);
      uint4 numbers;
      memcpy(&numbers, lanes, sizeof(numbers));
      write_shared(offset + second * Row<D>::kSecond, numbers);
    }
  }
}

template <class T, int D>
__device__ __forceinline__ void store_tokens(const TokenView& view, int64_t head, int first, int count, int rows,
                                             int width, uint32_t source, int worker, int workers) {
  const int word = worker % kRowLanes<D>, step = workers / kRowLanes<D>, end = min(rows, count - first);
  if (8 * word >= width) return;
  int row = worker / kRowLanes<D>;
  char* base = reinterpret_cast<char*>(static_cast<T*>(view.data) + head);
  const uint32_t row_bytes = sizeof(T) * static_cast<uint32_t>(view.token);
  uint32_t target = (first + row) * row_bytes + 16 * word;
  source += row * Row<D>::kBytes + 16 * word;
#pragma unroll 2
  for (; row < end; row += step, target += step * row_bytes, source += step * Row<D>::kBytes) {
    *reinterpret_cast<uint4*>(base + target) = read_shared<uint4>(source);
  }
}

// Motion times `factor` as a high and a low part, whose sum is exact to twice T's precision; zeros where there is none.
// `ones` puts a 1 where a product with dS gives its column sums: into channel 15, or behind the low parts.
template <class T, int D>
__device__ __forceinline__ void load_motion(const FloatView& view, int64_t head, int first, int count, int rows,
                                            int channels, float factor, bool ones, uint32_t target) {
  const int pair = threadIdx.x % 8, step = blockDim.x / 8;
  with_type<T>(view.data, view.single, [&](const auto* data) {
    int row = threadIdx.x / 8;
    const int low_exists = 2 * pair < channels ? count - first : 0;
    const int high_exists = 2 * pair + 1 < channels ? count - first : 0;
    const auto* source = data + head + (first + row) * view.token + 2 * pair * view.channel;
    const int64_t advance = step * view.token;
    uint32_t offset = target + row * Row<D>::kBytes + 4 * pair;
    const float padding = ones && pair == 7 && channels < kMaxMotionChannels ? 1.0F : 0.0F;
#pragma unroll 2
    for (; row < rows; row += step, source += advance, offset += step * Row<D>::kBytes) {
      const float x = row < low_exists ? factor * static_cast<float>(source[0]) : 0.0F;
      const float y = row < high_exists ? factor * static_cast<float>(source[view.channel]) : padding;
      const uint32_t high = pack<T>(x, y);
      const float2 rounded = unpack<T>(high);
      write_shared(offset + Row<D>::kHigh, high);
      write_shared(offset + Row<D>::kLow, pack<T>(x - rounded.x, y - rounded.y));
      if (ones && pair < 4) write_shared(offset + Row<D>::kOnes, pack<T>(pair == 0 ? 1.0F : 0.0F, 0.0F));
    }
  });
}

}  // namespace motarfuse
