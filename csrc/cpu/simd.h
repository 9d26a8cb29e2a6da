// Vectors of 16 bytes (GCC's and Clang's vector extension: SSE and NEON, native on every processor) for what compilers
// do not vectorise themselves, sums and transpositions, and an exponential for what they do.
//
// Vectors are not wider because GCC splits wider ones into what the baseline has before it inlines them into a function
// for a newer processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "../host_device.h"
#include "../scalar_types.h"

// MOTARFUSE_VARIANTS(name, (parameters), (arguments), body) defines the function `name`, compiled for the baseline and
// for two newer generations of x86 processors, of which the first call chooses the best that this processor runs. Fused
// multiply-add is more than speed there: it sums squares of tiny weights without ever holding a subnormal number, which
// costs a hundred cycles.
#if defined(__x86_64__) && defined(__GNUC__)
#define MOTARFUSE_VARIANTS(name, parameters, arguments, body)                                                   \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void name##_avx512 parameters { body; } \
  __attribute__((target("avx2,fma"))) void name##_avx2 parameters { body; }                                      \
  void name##_baseline parameters { body; }                                                                      \
  void name parameters {                                                                                         \
    static const auto best = motarfuse::has_avx512() ? name##_avx512                                             \
                             : motarfuse::has_avx2() ? name##_avx2                                               \
                                                     : name##_baseline;                                          \
    best arguments;                                                                                              \
  }
#else
#define MOTARFUSE_VARIANTS(name, parameters, arguments, body) \
  void name parameters { body; }
#endif
#define MOTARFUSE_INLINE inline __attribute__((always_inline))

namespace motarfuse {

#if defined(__x86_64__) && defined(__GNUC__)
// MOTARFUSE_CPU_CAPABILITY=avx2 or baseline holds this process back, so that tests reach every variant on one machine.
inline bool held_back(const char* capabilities) {
  const char* wanted = std::getenv("MOTARFUSE_CPU_CAPABILITY");
  return wanted != nullptr && *wanted != '\0' && std::strstr(capabilities, wanted) != nullptr;
}

inline bool has_avx2() {
  return !held_back("baseline") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

inline bool has_avx512() {
  return !held_back("baseline avx2") && has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

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
    const Bits half = load_half_bits(source), exponent = half & 0x7C00;
    // Float's exponent has a bias larger by 112, and infinities and NaNs keep the largest exponent.
    const Bits special = (Bits)(exponent == 0x7C00) & (112 << 23);
    const Bits normal = ((half & 0x7FFF) << 13) + (112 << 23) + special;
    const Bits subnormal = to_bits(__builtin_convertvector(half & 0x03FF, Vector<float>) * 0x1p-24f);
    const Bits is_subnormal = (Bits)(exponent == 0);
    return from_bits((is_subnormal & subnormal) | (~is_subnormal & normal) | ((half & 0x8000) << 16));
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
    const Bits bits = to_bits(v), magnitude = bits & 0x7FFFFFFF;
    const Bits normal = (magnitude - (112 << 23) + 0x0FFF + ((magnitude >> 13) & 1)) >> 13;
    // 0.5 has the spacing of subnormal halves, 2^-24: adding it rounds to them.
    const Bits subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000;
    const Bits is_subnormal = (Bits)(magnitude < (113 << 23)), overflow = (Bits)(magnitude >= (143 << 23));
    const Bits finite = (is_subnormal & subnormal) | (~is_subnormal & normal);
    const Bits nan = (Bits)(v != v);
    const Bits special = (nan & 0x7E00) | (~nan & 0x7C00);
    store_half_bits(target, (overflow & special) | (~overflow & finite) | ((bits >> 16) & 0x8000));
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

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87.3, where exp leaves the normal numbers; NaN stays NaN. x
// = k ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), then 1 + r + r^2 q(r) with q of degree 4 fitted
// to the smallest largest relative error of the whole (4e-9), and k added to the exponent. Scalar and without branches:
// a loop of it becomes one over the widest lanes that the processor has.
MOTARFUSE_INLINE float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) - k * -2.12194440054690583e-4f;
  float q = 1.381459838e-03f;
  q = q * r + 8.368716898e-03f;
  q = q * r + 4.166838805e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const float p = q * (r * r) + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - (0x4B400000 - 127)) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return x < -87.3f ? 0.0f : p * scale;
}

// float64 is there for gradcheck: exact before fast.
MOTARFUSE_INLINE double exp_nonpositive(double x) { return std::exp(x); }

}  // namespace motarfuse
