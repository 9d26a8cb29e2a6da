// The order of a gallery by re-ranked distances, pair by pair: what the CPU and the GPU count and choose overlaps by.
// The arithmetic is that of motarfuse/retrieval, operation by operation, so that bounds of a squared distance give
// bounds of its key: every operation is rounded alone, and none falls where its operand rises or the other way round.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "ranking.h"

namespace motarfuse {

// What rows share with gallery entries: of row i the places from room[i] to room[i] + counts[i], columns ascending.
struct SharedLists {
  const int64_t *room = nullptr, *counts = nullptr;
  const int32_t* columns = nullptr;
  const double* sums = nullptr;
  int64_t rows = 0;
};

// The key of a pair: the squared distance at which a pair that shares nothing has the same final distance.
struct KeyRule {
  // Of the distance in the formula, relative to the row's largest; 0 for one that is not relative, and below 0 where
  // lambda is 0 and keys are Jaccard distances.
  int64_t power = 1;
  double gain = 0.0;  // (1 - lambda) / lambda
  bool clamped = false;
};

// J = 1 - m / (2 - m).
MOTARFUSE_HOST_DEVICE double jaccard_distance(double shared, bool clamped) {
  const double distance = rounded_sum(1.0, -(shared / rounded_sum(2.0, -shared)));
  return clamped && distance < 0.0 ? 0.0 : distance;
}

MOTARFUSE_HOST_DEVICE double key_of(const KeyRule& rule, double squared, double largest, double jaccard) {
  const double by = rounded_product(rule.gain, rounded_sum(1.0, -jaccard));
  if (rule.power == 0) return rounded_sum(squared, -(2.0 * by));
  if (rule.power == 1) return rounded_sum(squared, -rounded_product(largest, by));
  const double moved = rounded_sum(rounded_product(squared, squared),
                                   -rounded_product(rounded_product(largest, largest), by));
  const double key = copysign(sqrt(fabs(moved)), moved);
  return key < squared ? key : squared;
}

// How many of the ascending numbers are below a value, or not above it.
template <bool kOrEqual>
MOTARFUSE_HOST_DEVICE int64_t count_below(const double* numbers, int64_t count, double value) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const double number = numbers[first + half];
    const bool below = kOrEqual ? number <= value : number < value;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// A pair comes before the thresholds from `last` on by its distance, and from `first` on by its key; or the float32
// score leaves either open.
struct Step {
  int64_t first = 0, last = 0;
  bool unsure = false;
};

// Of a score that is within `slack` of the exact one, or NaN. Scores are negative squared distances.
MOTARFUSE_HOST_DEVICE Step step_of(const KeyRule& rule, float score, double slack, double largest, double shared,
                                   const double* thresholds, int64_t count) {
  const double jaccard = jaccard_distance(shared, rule.clamped);
  if (!(jaccard < 1.0)) return {};
  if (rule.power < 0) {
    const int64_t before = count_below<false>(thresholds, count, jaccard);
    if (before == count) return {};
    return thresholds[before] == jaccard ? Step{0, 0, true} : Step{before, count, false};
  }
  const double about = static_cast<double>(score);
  double least = rounded_sum(-slack, -about), most = rounded_sum(slack, -about);
  least = least > 0.0 ? least : 0.0;  // also of NaN
  most = most == most ? most : INFINITY;
  const double low = key_of(rule, least, largest, jaccard);
  // A key is not above its distance.
  const int64_t before = count_below<false>(thresholds, count, low);
  if (before == count || thresholds[before] > most) return {};  // most pairs
  const double* const rest = thresholds + before;
  const int64_t left = count - before;
  const int64_t first = count_below<true>(rest, left, key_of(rule, most, largest, jaccard));
  const int64_t last = count_below<true>(rest, left, most);
  if (first != 0 || last != count_below<false>(rest, left, least)) return {0, 0, true};
  return {before, before + last, false};
}

MOTARFUSE_HOST_DEVICE bool is_listed(const int64_t* ascending, int64_t count, int64_t value) {
  int64_t first = 0;
  while (first < count) {
    const int64_t half = first + (count - first) / 2;
    if (ascending[half] == value) return true;
    if (ascending[half] < value) {
      first = half + 1;
    } else {
      count = half;
    }
  }
  return false;
}

}  // namespace motarfuse
