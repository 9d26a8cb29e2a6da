// Which pairs batch_hard_triplet takes on the CPU: rows in panels, and every anchor's farthest positive and nearest
// negative of tiles of pairs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "../views.h"
#include "simd.h"
#include "squared_distances.h"
#include "tokens.h"

namespace motarfuse {

// Not cleared, unlike a vector: zeroing what is written anyway takes as long as reading all features.
template <class C>
using Numbers = std::unique_ptr<C[]>;

// Distances as integers of their bits, which have the same order, since none is negative.
template <class C>
using Key = std::conditional_t<std::is_same_v<C, double>, int64_t, int32_t>;

template <class C>
MOTARFUSE_INLINE Key<C> bits_of(C distance) {
  Key<C> bits;
  std::memcpy(&bits, &distance, sizeof(bits));
  return bits;
}

template <class C>
MOTARFUSE_INLINE C of_bits(Key<C> bits) {
  C distance;
  std::memcpy(&distance, &bits, sizeof(distance));
  return distance;
}

// NaN is the farthest and the nearest of all, as it is to argmax and argmin; where there is nobody, all are better.
template <class C>
constexpr Key<C> kUnknownFar = std::is_same_v<C, double> ? 0x7FF8000000000000 : 0x7FC00000;
template <class C>
constexpr Key<C> kUnknownNear = -1;
template <class C>
constexpr Key<C> kNobodyFar = -1;
template <class C>
constexpr Key<C> kNobodyNear = std::numeric_limits<Key<C>>::max();

// The best of each anchor among the pairs seen: keys and indices.
template <class C>
struct Best {
  std::vector<Key<C>> far, farthest, near, nearest;

  explicit Best(int64_t anchors)
      : far(anchors, kNobodyFar<C>), farthest(anchors), near(anchors, kNobodyNear<C>), nearest(anchors) {}

  // Ties take the lowest index, so that the order of merging does not matter.
  void merge(const Best& other) {
    for (size_t i = 0; i < far.size(); ++i) {
      if (other.far[i] > far[i] || (other.far[i] == far[i] && other.farthest[i] < farthest[i])) {
        far[i] = other.far[i];
        farthest[i] = other.farthest[i];
      }
      if (other.near[i] < near[i] || (other.near[i] == near[i] && other.nearest[i] < nearest[i])) {
        near[i] = other.near[i];
        nearest[i] = other.nearest[i];
      }
    }
  }
};

// Lengths ------------------------------------------------------------------------------------------------------------

// Of the cosine, (B,) each: max(|x|, 1e-12), and 1 - |y|^2 of the rows y = x / length that are shorter than 1e-12, for
// which alone it is above zero.
template <class C>
struct Lengths {
  C *length = nullptr, *lacking = nullptr;
};

// What the distances of a row need: the length in double, and whether x / length is zero: cosine 0 with all, exactly.
struct Norm {
  double length;
  bool is_zero;
};

// y = x / length.
template <class C>
MOTARFUSE_INLINE Norm normalize(const C* __restrict x, C* __restrict y, int64_t dim, const Lengths<C>& lengths,
                                int64_t index) {
  C total = C(0), largest = C(0);
  double exact = 0.0;
  for (int64_t first = 0; first < dim; first += kDepth) {
    const int64_t last = std::min(dim, first + kDepth);
    C squares = C(0);
#pragma omp simd reduction(+ : squares) reduction(max : largest)
    for (int64_t d = first; d < last; ++d) {
      squares += x[d] * x[d];
      largest = std::fabs(x[d]) > largest ? std::fabs(x[d]) : largest;
    }
    total += squares;
    double exact_squares = 0.0;
#pragma omp simd reduction(+ : exact_squares)
    for (int64_t d = first; d < last; ++d) exact_squares += static_cast<double>(x[d]) * static_cast<double>(x[d]);
    exact += exact_squares;
  }
  const C norm = std::sqrt(total);
  const bool is_short = norm < C(1e-12);  // NaN is not, and reaches the loss
  const C length = is_short ? C(1e-12) : norm;
  const C rest = norm / length;
  lengths.length[index] = length;
  lengths.lacking[index] = is_short ? std::max(C(1) - rest * rest, std::numeric_limits<C>::min()) : C(0);
  for (int64_t d = 0; d < dim; ++d) y[d] = x[d] / length;
  return {is_short ? 1e-12 : std::sqrt(exact), largest / length == C(0)};
}

// What the mining reads: panels of rows, padded with zeros, and of each row the identity (-1 in the padding) and what
// the cosine needs.
template <class C>
struct Mining {
  int64_t batch = 0, dim = 0;
  bool cosine = false;
  TokensView features;
  Lengths<C> lengths;
  Numbers<C> panels;
  Numbers<C> converted;  // (B, D): the features that the cosine cannot use where they lie
  const C* rows = nullptr;  // of the features, for the cosine
  int64_t stride = 0;
  std::vector<C> lacking;
  std::vector<double> exact_lengths;
  std::vector<Key<C>> identities, is_zero;

  int64_t num_panels() const { return (batch + kPanel - 1) / kPanel; }
  const C* panel(int64_t index) const { return panels.get() + index * kPanel * dim; }
};

// Panels -------------------------------------------------------------------------------------------------------------

template <class C>
MOTARFUSE_INLINE void pack_panels(Mining<C>& mining, int64_t begin, int64_t end) {
  const int64_t dim = mining.dim;
  const Numbers<C> scratch(new C[kPanel * dim]);
  C* const rows = scratch.get();
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kPanel, count = std::min<int64_t>(kPanel, mining.batch - first);
    C* const panel = mining.panels.get() + first * dim;
    TokensView view = mining.features;
    view.batch = kPanel * view.cell;  // a panel as an item
    if (mining.converted != nullptr) {
      load_rows(view, index, count, dim, mining.converted.get() + first * dim);
    } else if (!mining.cosine) {
      load_rows(view, index, count, dim, rows);
    }
    for (int64_t i = 0; mining.cosine && i < count; ++i) {
      const int64_t row = first + i;
      const Norm norm = normalize(mining.rows + row * mining.stride, rows + i * dim, dim, mining.lengths, row);
      mining.exact_lengths[row] = norm.length;
      mining.is_zero[row] = norm.is_zero;
      mining.lacking[row] = mining.lengths.lacking[row];
    }
    std::fill(rows + count * dim, rows + kPanel * dim, C(0));
    int64_t d = 0;
    if constexpr (std::is_same_v<C, float>) {
      for (; d + 4 <= dim; d += 4) {
        for (int i = 0; i < kPanel; i += 4) {
          Vector<C> across[4], along[4];
          for (int r = 0; r < 4; ++r) across[r] = load(rows + (i + r) * dim + d);
          transpose(across, along);
          for (int r = 0; r < 4; ++r) store(panel + (d + r) * kPanel + i, along[r]);
        }
      }
    }
    for (; d < dim; ++d) {
      for (int i = 0; i < kPanel; ++i) panel[d * kPanel + i] = rows[i * dim + d];
    }
  }
}

// Mining -------------------------------------------------------------------------------------------------------------

// Under the cosine a squared distance of unit vectors becomes 1 - cos; docs/kernels/batch_hard_triplet.md.
template <class C>
MOTARFUSE_INLINE void to_cosine(const Mining<C>& mining, int64_t anchor, int64_t others, C* __restrict distances) {
  const C lacking = mining.lacking[anchor];
  const Key<C> is_zero = mining.is_zero[anchor];
  const C* const other_lacking = mining.lacking.data() + others;
  const Key<C>* const other_is_zero = mining.is_zero.data() + others;
  for (int j = 0; j < kPanel; ++j) {
    const C distance = C(0.5) * (distances[j] + (lacking + other_lacking[j]));
    distances[j] = (is_zero | other_is_zero[j]) != 0 ? C(1) : distance;
  }
}

// Both ends of the pairs of an anchor and a panel of later rows take note of the other.
template <class C>
MOTARFUSE_INLINE void choose(const Mining<C>& mining, int64_t anchor, int64_t others, const C* __restrict distances,
                             Best<C>& best) {
  using K = Key<C>;
  const K* const identities = mining.identities.data() + others;
  const K identity = mining.identities[anchor], own = static_cast<K>(anchor), first = static_cast<K>(others);
  K* __restrict const far = best.far.data() + others;
  K* __restrict const farthest = best.farthest.data() + others;
  K* __restrict const near = best.near.data() + others;
  K* __restrict const nearest = best.nearest.data() + others;
  K far_keys[kPanel], near_keys[kPanel];
  K largest = kNobodyFar<C>, smallest = kNobodyNear<C>;
  for (int j = 0; j < kPanel; ++j) {
    const C distance = distances[j];
    const K bits = bits_of(distance);
    const bool unknown = distance != distance, is_pair = (first + j > own) & (identities[j] >= 0);
    const bool same = identities[j] == identity;
    const K far_key = unknown ? kUnknownFar<C> : bits, near_key = unknown ? kUnknownNear<C> : bits;
    far_keys[j] = is_pair & same ? far_key : kNobodyFar<C>;
    near_keys[j] = is_pair & !same ? near_key : kNobodyNear<C>;
  }
  for (int j = 0; j < kPanel; ++j) {
    largest = far_keys[j] > largest ? far_keys[j] : largest;
    smallest = near_keys[j] < smallest ? near_keys[j] : smallest;
    farthest[j] = far_keys[j] > far[j] ? own : farthest[j];
    far[j] = far_keys[j] > far[j] ? far_keys[j] : far[j];
    nearest[j] = near_keys[j] < near[j] ? own : nearest[j];
    near[j] = near_keys[j] < near[j] ? near_keys[j] : near[j];
  }
  // Tiles come in the order in which every anchor's others rise: the first of equals stays.
  if (largest > best.far[anchor]) {
    best.far[anchor] = largest;
    best.farthest[anchor] = first + static_cast<K>(std::find(far_keys, far_keys + kPanel, largest) - far_keys);
  }
  if (smallest < best.near[anchor]) {
    best.near[anchor] = smallest;
    best.nearest[anchor] = first + static_cast<K>(std::find(near_keys, near_keys + kPanel, smallest) - near_keys);
  }
}

// Tiles [begin, end) of the upper triangle, counted row by row.
template <class C>
MOTARFUSE_INLINE void mine_tiles(const Mining<C>& mining, int64_t begin, int64_t end, Best<C>& best) {
  const AddSquaredDistances<C> add = add_squared_distances<C>();
  const int64_t panels = mining.num_panels(), dim = mining.dim;
  int64_t row = 0, column = begin;
  for (; column >= panels - row; ++row) column -= panels - row;
  column += row;
  alignas(64) C distances[kPanel * kPanel];
  for (int64_t tile = begin; tile < end; ++tile) {
    const auto rows_of = [&](int64_t panel) {
      return static_cast<int>(std::min<int64_t>(kPanel, mining.batch - panel * kPanel));
    };
    const TilePart part{rows_of(row), rows_of(column), row == column};
    for (C& distance : distances) distance = C(0);
    for (int64_t d = 0; d < dim; d += kDepth) {
      add(mining.panel(row) + d * kPanel, mining.panel(column) + d * kPanel, std::min(kDepth, dim - d), part,
          distances);
    }
    for (int i = 0; i < part.rows; ++i) {
      const int64_t anchor = row * kPanel + i, others = column * kPanel;
      if (mining.cosine) to_cosine(mining, anchor, others, distances + i * kPanel);
      choose(mining, anchor, others, distances + i * kPanel, best);
    }
    if (++column == panels) column = ++row;
  }
}

// 1 - cos of the chosen pairs of anchors [begin, end), two each, in double: a term of the loss may be
// much smaller than the two distances that it is the difference of.
template <class C>
MOTARFUSE_INLINE void measure(const Mining<C>& mining, const Best<C>& best, double* distances, int64_t begin,
                              int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (best.far[i] == kNobodyFar<C> || best.near[i] == kNobodyNear<C>) continue;
    const int64_t positive = best.farthest[i], negative = best.nearest[i];
    const C* __restrict const x = mining.rows + i * mining.stride;
    const C* __restrict const p = mining.rows + positive * mining.stride;
    const C* __restrict const n = mining.rows + negative * mining.stride;
    double far = 0.0, near = 0.0;
#pragma omp simd reduction(+ : far, near)
    for (int64_t d = 0; d < mining.dim; ++d) {
      const double own = static_cast<double>(x[d]);
      far += own * static_cast<double>(p[d]);
      near += own * static_cast<double>(n[d]);
    }
    const auto distance = [&](double product, int64_t other) {
      const bool is_zero = (mining.is_zero[i] | mining.is_zero[other]) != 0;
      return is_zero ? 1.0 : 1.0 - product / (mining.exact_lengths[i] * mining.exact_lengths[other]);
    };
    distances[2 * i] = distance(far, positive);
    distances[2 * i + 1] = distance(near, negative);
  }
}

}  // namespace motarfuse
