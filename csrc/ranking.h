// Exact scores of pairs of packed rows, and the order that they rank a gallery in: what decides a rank on every device.
//
// All sums have one order and every product is rounded before it is added, so that a score has the same bits on the
// CPU, on the GPU and in plain torch (motarfuse/reference/ranking.py).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace motarfuse {

// Partial sums of a dot product: partial j adds columns j, j + 32, j + 64, ... in this order.
constexpr int kPartials = 32;

// With A, B, C the dot products over the three segments of columns.
enum class ScoreForm : int32_t {
  kProduct,    // A
  kEuclidean,  // -sum (a - b)^2 over the first segment
  kParts,      // B / (C + epsilon)
  kSum,        // A + weight * (B / (C + epsilon))
  kMasked,     // A / sqrt(B), 0 where B is
};

struct ScoreRule {
  ScoreForm form = ScoreForm::kProduct;
  int64_t widths[3] = {0, 0, 0};  // columns of the segments, side by side from column 0 on
  double weight = 0.0, epsilon = 0.0;
};

// Arithmetic that no compiler fuses: a * b + c with one rounding has other bits than with two.
MOTARFUSE_HOST_DEVICE double apart(double value) {
#if !defined(__CUDA_ARCH__)
#if defined(__x86_64__) && defined(__GNUC__)
  asm("" : "+x"(value));
#elif defined(__aarch64__) && defined(__GNUC__)
  asm("" : "+w"(value));
#else
  volatile double kept = value;
  value = kept;
#endif
#endif
  return value;
}

MOTARFUSE_HOST_DEVICE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return apart(a * b);
#endif
}

MOTARFUSE_HOST_DEVICE double rounded_sum(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// What a column adds to its partial sum. Of float32 rows the product is exact in float64, fused or not.
MOTARFUSE_HOST_DEVICE double product_term(double a, double b) { return rounded_product(a, b); }

MOTARFUSE_HOST_DEVICE double difference_term(double a, double b) {
  const double difference = rounded_sum(a, -b);
  return rounded_product(difference, difference);
}

// partial j plus partial j + 16, then j + 8, + 4, + 2, + 1. On the GPU: lane j of a warp holds partial j, and takes
// that of the lane 16, 8, 4, 2, 1 above.
MOTARFUSE_HOST_DEVICE double add_partials(double partials[kPartials]) {
  for (int width = kPartials / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) partials[j] = rounded_sum(partials[j], partials[j + width]);
  }
  return partials[0];
}

// Whether a form needs the dot product of a segment.
MOTARFUSE_HOST_DEVICE bool needs_segment(ScoreForm form, int segment) {
  switch (form) {
    case ScoreForm::kProduct:
    case ScoreForm::kEuclidean: return segment == 0;
    case ScoreForm::kParts: return segment != 0;
    case ScoreForm::kMasked: return segment != 2;
    default: return true;
  }
}

// A score from the sums over its segments; for kEuclidean `a` is the sum of squares. Unneeded ones may be anything.
MOTARFUSE_HOST_DEVICE double score_of(const ScoreRule& rule, double a, double b, double c) {
  switch (rule.form) {
    case ScoreForm::kProduct: return a;
    case ScoreForm::kEuclidean: return -a;
    case ScoreForm::kParts: return b / rounded_sum(c, rule.epsilon);
    case ScoreForm::kMasked: return b == 0.0 ? 0.0 : a / std::sqrt(b);
    default: return rounded_sum(a, rounded_product(rule.weight, b / rounded_sum(c, rule.epsilon)));
  }
}

// Larger scores first, of equal ones the lower gallery index.
MOTARFUSE_HOST_DEVICE bool comes_before(double score, int64_t index, double threshold, int64_t entry) {
  return score > threshold || (score == threshold && index < entry);
}

// The float32 scores that an exact comparison with a threshold is needed for: those not above `high` and not below
// `low`. Both are rounded outwards, so that no undecided pair is lost. Of no use with NaN: then all are undecided.
struct Band {
  float low, high;
};

// The least float that is not below a number; infinity for NaN. By its bits: nextafterf takes a hundred times longer.
MOTARFUSE_HOST_DEVICE float rounded_up(double value) {
  float nearest = static_cast<float>(value) + 0.0f;  // -0 becomes 0
  if (nearest != nearest) return INFINITY;
  int32_t bits;
  memcpy(&bits, &nearest, sizeof(bits));
  bits += static_cast<double>(nearest) < value ? (bits >> 31) | 1 : 0;
  memcpy(&nearest, &bits, sizeof(bits));
  return nearest;
}

MOTARFUSE_HOST_DEVICE float rounded_down(double value) { return -rounded_up(-value); }

MOTARFUSE_HOST_DEVICE Band band_of(double threshold, float slack) {
  const double wide = static_cast<double>(slack);
  return {rounded_down(threshold - wide), rounded_up(threshold + wide)};
}

// Whether a pair needs its exact score. Written so that NaN, an unknown score, does; -inf marks what does not count.
MOTARFUSE_HOST_DEVICE bool is_undecided(float score, Band band) {
  return !(score > band.high) && !(score < band.low) && score != -INFINITY;
}

// Rules that pairs must fulfil to be found. -1 is unknown: it equals nothing and differs from everything.
enum LabelRule : int32_t { kAnyLabel = 0, kMustDiffer = 1, kMustEqual = 2 };

MOTARFUSE_HOST_DEVICE bool fulfils(int rule, int64_t query, int64_t gallery) {
  const bool equal = query == gallery && query != -1;
  return rule == kAnyLabel || equal == (rule == kMustEqual);
}

}  // namespace motarfuse
