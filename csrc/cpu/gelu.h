// GELUs and their derivatives, in float from few multiply-adds, without a branch, a division or a call: a loop of them
// becomes one over the widest lanes that the processor has. Nothing cancels in the negative tail, nothing overflows:
//
//   u Phi(u) = max(u, 0) - |u| q with q = Phi(-|u|); its derivative is d for u < 0 and 1 - d else, d = q - |u| phi(u).
//   u sigmoid(s), with a = exp(-|s|) and r = 1 / (1 + a): sigmoid(s) is r, or a r for s < 0, its derivative by s a r^2.
//   The approximation by tanh is of this kind, because (1 + tanh(s / 2)) / 2 = sigmoid(s).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace motarfuse {

enum class Activation { kGelu, kGeluTanh, kQuickGelu };

// 2^y for y <= 0, to 2 units in the last place; 0 below -126, where it leaves the normal numbers; NaN stays NaN. The
// polynomial is fitted to the smallest largest relative error (2e-9).
MOTARFUSE_INLINE float exp2_nonpositive(float y) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const float shifted = y + kRound;
  const float r = y - (shifted - kRound);
  float p = 1.535336196e-04f;
  p = p * r + 1.339887385e-03f;
  p = p * r + 9.618436918e-03f;
  p = p * r + 5.550332367e-02f;
  p = p * r + 2.402264774e-01f;
  p = p * r + 6.931471825e-01f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - (0x4B400000 - 127)) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return y < -126.0f ? 0.0f : p * scale;
}

// |u|, but no more than what makes q and phi 0 anyway: infinity must not meet that 0.
template <class C>
MOTARFUSE_INLINE C bounded_magnitude(C u) {
  constexpr C kBound = sizeof(C) == 4 ? C(20) : C(50);
  const C t = std::fabs(u);  // an expression with a choice would be split into both, with all that follows twice
  return t > kBound ? kBound : t;
}

// Phi(-t), t >= 0: log2 of it is a polynomial, of kernels/bias_gelu_math.py, fitted where it is above 1e-9, and less
// than it beyond. The relative error is 2e-7 near 0, 3e-6 at 5.
MOTARFUSE_INLINE float normal_tail(float t) {
  float p = -2.1737127653409516e-08f * t + 6.779773116249999e-07f;
  p = p * t - 9.043488716997672e-06f;
  p = p * t + 6.537634908454493e-05f;
  p = p * t - 0.00024215734447352588f;
  p = p * t - 7.581715181004256e-05f;
  p = p * t + 0.007035990711301565f;
  p = p * t - 0.05249791592359543f;
  p = p * t - 0.4592040181159973f;
  p = p * t - 1.1511058807373047f;
  return exp2_nonpositive(p * t - 1.0f);
}

// float64 is there for gradcheck: exact before fast.
MOTARFUSE_INLINE double normal_tail(double t) { return 0.5 * std::erfc(t * 0.70710678118654752440); }

MOTARFUSE_INLINE float normal_density(float t) {
  return exp2_nonpositive(t * t * -0.72134752044448170368f) * 0.39894228040143267794f;
}

MOTARFUSE_INLINE double normal_density(double t) { return std::exp(-0.5 * t * t) * 0.39894228040143267794; }

// 1 / (1 + a) for a from 0 to 1: a parabola, right to 1 %, and two steps of Newton's. A division of wide vectors takes
// longer than all of this.
MOTARFUSE_INLINE float one_over_one_plus(float a) {
  const float d = 1.0f + a;
  float r = (0.32323232f * a - 0.80808081f) * a + 0.98989899f;
  r = r + r * (1.0f - d * r);
  return r + r * (1.0f - d * r);
}

MOTARFUSE_INLINE double one_over_one_plus(double a) { return 1.0 / (1.0 + a); }

template <class C>
struct Sigmoid {
  C value, slope;  // slope: the derivative by s
};

template <class C>
MOTARFUSE_INLINE Sigmoid<C> sigmoid(C s) {
  const C a = exp_nonpositive(-std::fabs(s));
  const C r = one_over_one_plus(a);
  return {s < C(0) ? a * r : r, a * r * r};
}

constexpr double kTanhLinear = 1.59576912160573071176;  // 2 sqrt(2 / pi)
constexpr double kTanhCubic = 0.07135481627260025;      // 0.044715 of it
constexpr double kQuickSlope = 1.702;

template <Activation kActivation, class C>
MOTARFUSE_INLINE C gelu(C u) {
  if constexpr (kActivation == Activation::kGelu) {
    const C t = bounded_magnitude(u);
    return (u < C(0) ? C(0) : u) - t * normal_tail(t);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return u * sigmoid(u * (C(kTanhLinear) + C(kTanhCubic) * (u * u))).value;
  } else {
    return u * sigmoid(C(kQuickSlope) * u).value;
  }
}

template <Activation kActivation, class C>
MOTARFUSE_INLINE C gelu_derivative(C u) {
  if constexpr (kActivation == Activation::kGelu) {
    const C t = bounded_magnitude(u);
    const C d = normal_tail(t) - t * normal_density(t);
    return u < C(0) ? d : C(1) - d;
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    const C square = u * u;
    const auto parts = sigmoid(u * (C(kTanhLinear) + C(kTanhCubic) * square));
    return parts.value + u * (C(kTanhLinear) + C(3 * kTanhCubic) * square) * parts.slope;
  } else {
    const auto parts = sigmoid(C(kQuickSlope) * u);
    return parts.value + C(kQuickSlope) * u * parts.slope;
  }
}

}  // namespace motarfuse
