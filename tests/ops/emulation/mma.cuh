// Stands in for csrc/cuda/mma.cuh: the same functions, lane for lane as PTX defines the fragments of ldmatrix, stmatrix
// and mma.m16n8k16. test_motion_attention_emulation.py checks it against a formulation of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../scalar_types.h"

namespace motarfuse {

constexpr int kWarpLanes = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

template <class V>
V read_shared(uint32_t offset) {
  emulation::touch(offset, sizeof(V), false);
  V value;
  std::memcpy(&value, emulation::machine.shared.data() + offset, sizeof(V));
  return value;
}

template <class V>
void write_shared(uint32_t offset, V value) {
  emulation::touch(offset, sizeof(V), true);
  std::memcpy(emulation::machine.shared.data() + offset, &value, sizeof(V));
}

// The copy happens at the wait, as late as it may; its target is taken at once.
inline void copy_async(uint32_t offset, const void* source, bool exists) {
  if (exists && reinterpret_cast<uintptr_t>(source) % 16 != 0) emulation::fail("misaligned copy from global memory");
  emulation::touch(offset, 16, true);
  emulation::machine.fibers[threadIdx.x]->copies.push_back({offset, exists ? source : nullptr});
}

inline void wait_for_copies() {
  auto& copies = emulation::machine.fibers[threadIdx.x]->copies;
  for (const auto& copy : copies) {
    uint4 words{0, 0, 0, 0};
    if (copy.source != nullptr) std::memcpy(&words, copy.source, sizeof(words));
    write_shared(copy.offset, words);
  }
  copies.clear();
}

struct MatrixSlot {
  uint32_t offset;
  uint32_t* fragment;
};

inline void move_matrices(uint32_t* fragment, uint32_t offset, bool transposed, bool store) {
  MatrixSlot slot{offset, fragment};
  emulation::touch(offset, 16, store);
  emulation::whole_warp(slot, [&](MatrixSlot** slots) {
    unsigned char* const shared = emulation::machine.shared.data();
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        for (int half = 0; half < 2; ++half) {
          int row = lane / 4, column = 2 * (lane % 4) + half;
          if (transposed) std::swap(row, column);
          unsigned char* const in_memory = shared + slots[8 * matrix + row]->offset + 2 * column;
          unsigned char* const fragment = reinterpret_cast<unsigned char*>(slots[lane]->fragment + matrix);
          unsigned char* const in_register = fragment + 2 * half;
          std::memcpy(store ? in_memory : in_register, store ? in_register : in_memory, 2);
        }
      }
    }
  });
}

inline void load_matrices(uint32_t (&fragment)[4], uint32_t offset) { move_matrices(fragment, offset, false, false); }
inline void load_transposed(uint32_t (&fragment)[4], uint32_t offset) { move_matrices(fragment, offset, true, false); }

inline void store_tile(uint32_t offset, uint32_t row_bytes, const uint32_t (&fragment)[4]) {
  const int lane = threadIdx.x % kWarpLanes;
  move_matrices(const_cast<uint32_t*>(fragment), offset + (lane % 16) * row_bytes + (lane / 16) * 16, false, true);
}

template <class T>
float half_of(uint32_t packed, int which) {
  const uint16_t bits = static_cast<uint16_t>(packed >> (16 * which));
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return static_cast<float>(value);
}

struct ProductSlot {
  float* sums;
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ProductSlot slot{sums, a, {b0, b1}};
  emulation::whole_warp(slot, [](ProductSlot** slots) {
    float left[16][16], right[8][16];  // right is transposed
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = group + (i / 2 % 2) * 8, column = 2 * in_group + i % 2 + (i / 4) * 8;
        left[row][column] = half_of<T>(slots[lane]->a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) {
        right[group][2 * in_group + i % 2 + (i / 2) * 8] = half_of<T>(slots[lane]->b[i / 2], i % 2);
      }
    }
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
        float sum = 0.0F;
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
        slots[lane]->sums[i] += sum;
      }
    }
  });
}

template <class T>
uint32_t pack(float low, float high) {
  const T values[2] = {static_cast<T>(low), static_cast<T>(high)};
  uint32_t packed;
  std::memcpy(&packed, values, sizeof(packed));
  return packed;
}

template <class T>
float2 unpack(uint32_t packed) {
  return {half_of<T>(packed, 0), half_of<T>(packed, 1)};
}

inline float exp2_fast(float x) {
  const float result = std::exp2(x);
  return result < 1.17549435e-38F ? 0.0F : result;
}

}  // namespace motarfuse
