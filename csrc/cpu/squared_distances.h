// Squared distances between the rows of two panels, as sums of squared differences. A lane is a row of the second: all
// pairs are summed column by column in the same order, wherever their rows lie, so that equal rows have equal distances
// bit for bit, and (a, b) that of (b, a).
//
// Vectors are as wide as the processor's; simd.h says why that takes a function for each processor, here from a macro.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace motarfuse {

// Rows of a panel. They lie side by side: number d of row i is at [d * kPanel + i].
constexpr int kPanel = 32;
// Columns that are summed before the sum is added to the total: few enough for the first-level cache to hold those of
// two panels, and for sums of many columns to keep their digits.
constexpr int64_t kDepth = 128;

// Part of a tile that is wanted: `rows` of the first panel, `columns` rows of the second, which come after the first
// panel's row of the same number if the tile is on the diagonal.
struct TilePart {
  int rows, columns;
  bool diagonal;
};

// totals[i * kPanel + j] += sum over `depth` columns of (others_j - anchors_i)^2, at least where the part wants it.
#define MOTARFUSE_ADD_SQUARED_DISTANCES(name, attributes, bytes, block_rows)                            \
  template <class C>                                                                                    \
  attributes void name(const C* anchors, const C* others, int64_t depth, TilePart part, C* totals) {    \
    typedef C Wide __attribute__((vector_size(bytes)));                                                 \
    constexpr int kWide = bytes / sizeof(C), kRows = block_rows;                                        \
    for (int i = 0; i < part.rows; i += kRows) {                                                        \
      for (int j = part.diagonal ? i / (2 * kWide) * (2 * kWide) : 0; j < part.columns; j += 2 * kWide) {\
        Wide left[kRows], right[kRows];                                                                 \
        for (int r = 0; r < kRows; ++r) left[r] = right[r] = Wide{};                                    \
        for (int64_t d = 0; d < depth; ++d) {                                                           \
          Wide first, second;                                                                           \
          std::memcpy(&first, others + d * kPanel + j, sizeof(Wide));                                   \
          std::memcpy(&second, others + d * kPanel + j + kWide, sizeof(Wide));                          \
          for (int r = 0; r < kRows; ++r) {                                                             \
            const C anchor = anchors[d * kPanel + i + r];                                               \
            const Wide one = first - anchor, two = second - anchor;                                     \
            left[r] += one * one;                                                                       \
            right[r] += two * two;                                                                      \
          }                                                                                             \
        }                                                                                               \
        for (int r = 0; r < kRows; ++r) {                                                               \
          C* const target = totals + (i + r) * kPanel + j;                                              \
          Wide first, second;                                                                           \
          std::memcpy(&first, target, sizeof(Wide));                                                    \
          std::memcpy(&second, target + kWide, sizeof(Wide));                                           \
          first += left[r];                                                                             \
          second += right[r];                                                                           \
          std::memcpy(target, &first, sizeof(Wide));                                                    \
          std::memcpy(target + kWide, &second, sizeof(Wide));                                           \
        }                                                                                               \
      }                                                                                                 \
    }                                                                                                   \
  }

MOTARFUSE_ADD_SQUARED_DISTANCES(add_squared_distances_baseline, , 16, 4)
#if defined(__x86_64__) && defined(__GNUC__)
MOTARFUSE_ADD_SQUARED_DISTANCES(add_squared_distances_avx2, __attribute__((target("avx2,fma"))), 32, 4)
MOTARFUSE_ADD_SQUARED_DISTANCES(add_squared_distances_avx512,
                                __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), 64, 8)
#endif

template <class C>
using AddSquaredDistances = void (*)(const C*, const C*, int64_t, TilePart, C*);

// The widest that this processor runs.
template <class C>
AddSquaredDistances<C> add_squared_distances() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const AddSquaredDistances<C> best = has_avx512() ? add_squared_distances_avx512<C>
                                             : has_avx2() ? add_squared_distances_avx2<C>
                                                          : add_squared_distances_baseline<C>;
  return best;
#else
  return add_squared_distances_baseline<C>;
#endif
}

}  // namespace motarfuse
