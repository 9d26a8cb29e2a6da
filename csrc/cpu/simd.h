// Vectors of 16 bytes (GCC's and Clang's vector extension: SSE and NEON, native on every processor), and the exponential
// on them. Functions marked MOTARFUSE_CLONES are compiled once more with fused multiply-add; the loader picks.
//
// Not wider: GCC lowers wider generic vectors to what the baseline has before it inlines them into a wider clone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../host_device.h"
#include "../scalar_types.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define MOTARFUSE_CLONES __attribute__((target_clones("fma", "default")))
#else
#define MOTARFUSE_CLONES
#endif
#define MOTARFUSE_INLINE inline __attribute__((always_inline))

namespace motarfuse {

template <class C>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(16)));
  typedef int32_t Integer __attribute__((vector_size(16)));
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(16)));
  typedef int64_t Integer __attribute__((vector_size(16)));
};

template <class C>
using Vector = typename Simd<C>::Vector;

template <class C>
constexpr int kLanes = 16 / sizeof(C);

template <class C>
MOTARFUSE_INLINE Vector<C> splat(C value) {
  return Vector<C>{} + value;
}

template <class C>
MOTARFUSE_INLINE Vector<C> load(const C* source) {
  Vector<C> v;
  std::memcpy(&v, source, sizeof(v));
  return v;
}

template <class C>
MOTARFUSE_INLINE void store(C* target, Vector<C> v) {
  std::memcpy(target, &v, sizeof(v));
}

// Four numbers of a dtype as float lanes and back, rounded to nearest even. By integer arithmetic: the baseline has no
// instruction for half types, and compilers call a function for every number.
typedef uint32_t Bits __attribute__((vector_size(16)));
typedef uint16_t HalfBits __attribute__((vector_size(8)));

MOTARFUSE_INLINE Bits to_bits(Vector<float> v) {
  Bits bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

MOTARFUSE_INLINE Vector<float> from_bits(Bits bits) {
  Vector<float> v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

MOTARFUSE_INLINE Bits load_half_bits(const void* source) {
  HalfBits half;
  std::memcpy(&half, source, sizeof(half));
  return __builtin_convertvector(half, Bits);
}

MOTARFUSE_INLINE void store_half_bits(void* target, Bits bits) {
  const HalfBits half = __builtin_convertvector(bits, HalfBits);
  std::memcpy(target, &half, sizeof(half));
}

template <class C, class T>
MOTARFUSE_INLINE Vector<C> load_as(const T* source) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return from_bits(load_half_bits(source) << 16);
  } else if constexpr (std::is_same_v<T, Half>) {
    // The exponent field moves to float's, whose bias is larger by 112; infinities and NaNs have the largest exponent.
    const Bits half = load_half_bits(source);
    const Bits magnitude = (half & 0x7FFF) << 13;
    const Vector<float> finite = from_bits(magnitude) * 0x1p112f;
    const Bits special = (Bits)((half & 0x7C00) == 0x7C00) & (magnitude | 0x7F800000);
    const Bits regular = ~(Bits)((half & 0x7C00) == 0x7C00) & to_bits(finite);
    return from_bits(special | regular | ((half & 0x8000) << 16));
  } else {
    return load(source);
  }
}

template <class C, class T>
MOTARFUSE_INLINE void store_as(T* target, Vector<C> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Bits bits = to_bits(v);
    const Bits nan = (Bits)(v != v);
    store_half_bits(target, (nan & 0x7FC0) | (~nan & ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)));
  } else if constexpr (std::is_same_v<T, Half>) {
    const Bits bits = to_bits(v), sign = bits & 0x80000000;
    const Bits scaled = to_bits(from_bits(bits ^ sign) * 0x1p-112f);
    const Bits rounded = (scaled + 0x0FFF + ((scaled >> 13) & 1)) >> 13;
    const Bits overflow = (Bits)(rounded > 0x7C00), nan = (Bits)(v != v);
    const Bits finite = (overflow & 0x7C00) | (~overflow & rounded);
    store_half_bits(target, (nan & 0x7E00) | (~nan & finite) | (sign >> 16));
  } else {
    store(target, v);
  }
}

// Lane by lane the larger of a and b; a NaN in b is passed over.
template <class V>
MOTARFUSE_INLINE V maximum(V a, V b) {
  return b > a ? b : a;
}

template <class C>
MOTARFUSE_INLINE C horizontal_maximum(Vector<C> v) {
  C result = v[0];
  for (int i = 1; i < kLanes<C>; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

template <class C>
MOTARFUSE_INLINE C horizontal_sum(Vector<C> v) {
  if constexpr (kLanes<C> == 4) return (v[0] + v[2]) + (v[1] + v[3]);
  return v[0] + v[1];
}

// Rows to columns: lane i of result c is lane c of source i.
MOTARFUSE_INLINE void transpose(const Vector<float> source[4], Vector<float> result[4]) {
#if defined(__clang__)
  const auto low01 = __builtin_shufflevector(source[0], source[1], 0, 4, 1, 5);
  const auto low23 = __builtin_shufflevector(source[2], source[3], 0, 4, 1, 5);
  const auto high01 = __builtin_shufflevector(source[0], source[1], 2, 6, 3, 7);
  const auto high23 = __builtin_shufflevector(source[2], source[3], 2, 6, 3, 7);
  result[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  result[1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  result[2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  result[3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
#else
  using Mask = Simd<float>::Integer;
  constexpr Mask kLow = {0, 4, 1, 5}, kHigh = {2, 6, 3, 7}, kFirst = {0, 1, 4, 5}, kSecond = {2, 3, 6, 7};
  const auto low01 = __builtin_shuffle(source[0], source[1], kLow);
  const auto low23 = __builtin_shuffle(source[2], source[3], kLow);
  const auto high01 = __builtin_shuffle(source[0], source[1], kHigh);
  const auto high23 = __builtin_shuffle(source[2], source[3], kHigh);
  result[0] = __builtin_shuffle(low01, low23, kFirst);
  result[1] = __builtin_shuffle(low01, low23, kSecond);
  result[2] = __builtin_shuffle(high01, high23, kFirst);
  result[3] = __builtin_shuffle(high01, high23, kSecond);
#endif
}

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87.3, where exp leaves the normal numbers; NaN stays NaN.
// x = k ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), then 1 + r + r^2 q(r) with q of degree 4 fitted to
// the smallest largest relative error of the whole (4e-9), and k added to the exponent.
MOTARFUSE_INLINE Vector<float> exp_nonpositive(Vector<float> x) {
  using Integer = Simd<float>::Integer;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const Vector<float> shifted = x * 1.44269504088896341f + kRound;
  const Vector<float> k = shifted - kRound;
  const Vector<float> r = (x - k * 0.693359375f) - k * -2.12194440054690583e-4f;
  Vector<float> q = splat(1.381459838e-03f);
  q = q * r + 8.368716898e-03f;
  q = q * r + 4.166838805e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const Vector<float> p = q * (r * r) + r + 1.0f;
  Integer bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - (0x4B400000 - 127)) << 23;
  Vector<float> scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return x < -87.3f ? Vector<float>{} : p * scale;
}

// float64 is there for gradcheck: exact before fast.
MOTARFUSE_INLINE Vector<double> exp_nonpositive(Vector<double> x) { return Vector<double>{std::exp(x[0]), std::exp(x[1])}; }

}  // namespace motarfuse
