// The gradient of batch_hard_triplet on the CPU: of each feature the weighted differences of its pairs, added in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../views.h"
#include "batch_hard_triplet_mining.h"
#include "simd.h"
#include "tokens.h"

namespace motarfuse {

// Features whose gradients are written at once: a cache line of them where they, not columns, lie side by side.
constexpr int64_t kFeaturesPerBlock = 16;

// (2, B) each, of positives and of negatives; null when a forward need not keep them.
template <class C>
struct Pairs {
  int32_t* chosen = nullptr;
  C *distances = nullptr, *weights = nullptr;

  void set(int64_t place, int64_t index, C distance, C weight) const {
    if (chosen == nullptr) return;
    chosen[place] = static_cast<int32_t>(index);
    distances[place] = distance;
    weights[place] = weight;
  }
};

// The pairs of every feature one after the other: its own two, then those of the anchors that chose it, in order.
template <class C>
struct PairLists {
  std::vector<int64_t> begins;
  std::vector<int32_t> others;
  std::vector<C> weights, along;  // along: what the projection takes off in the direction of the feature

  PairLists(const Pairs<C>& pairs, const C* lacking, int64_t batch) : begins(batch + 1), along(batch) {
    for (int64_t place = 0; place < 2 * batch; ++place) {
      const int64_t index = pairs.chosen[place];
      STD_TORCH_CHECK(index >= -1 && index < batch, "batch_hard_triplet: a chosen index is out of range");
      if (index < 0) continue;
      ++begins[place % batch + 1];
      ++begins[index + 1];
    }
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    others.resize(begins[batch]);
    weights.resize(begins[batch]);
    std::vector<int64_t> next(begins.begin(), begins.end() - 1);
    const auto add = [&](int64_t feature, int64_t other, int64_t place) {
      others[next[feature]] = static_cast<int32_t>(other);
      weights[next[feature]++] = pairs.weights[place];
      if (lacking == nullptr) return;
      // F.normalize divides what is shorter by 1e-12 and does not project.
      along[feature] += pairs.weights[place] * (lacking[feature] > C(0) ? C(1) : pairs.distances[place]);
    };
    for (const bool own : {true, false}) {
      for (int64_t anchor = 0; anchor < batch; ++anchor) {
        for (const int64_t place : {anchor, batch + anchor}) {
          const int64_t index = pairs.chosen[place];
          if (index >= 0) add(own ? anchor : index, own ? index : anchor, place);
        }
      }
    }
  }
};

template <class C>
struct Backward {
  int64_t batch, dim;
  TokensView features, grad;
  Lengths<C> lengths;    // null unless cosine
  Numbers<C> packed;      // rows that are not used where they lie: of other types and strides, and unit vectors
  const C* rows;
  int64_t stride;
  C scale;
  const PairLists<C>& lists;
};

template <class C>
MOTARFUSE_INLINE void pack_blocks(Backward<C>& work, int64_t begin, int64_t end) {
  const int64_t dim = work.dim;
  TokensView view = work.features;
  view.batch = kFeaturesPerBlock * view.cell;  // a block as an item
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kFeaturesPerBlock, count = std::min(kFeaturesPerBlock, work.batch - first);
    load_rows(view, index, count, dim, work.packed.get() + first * dim);
    for (int64_t i = first; work.lengths.length != nullptr && i < first + count; ++i) {
      C* __restrict const row = work.packed.get() + i * dim;
      const C length = work.lengths.length[i];
      for (int64_t d = 0; d < dim; ++d) row[d] /= length;
    }
  }
}

template <class C>
MOTARFUSE_INLINE void backward_blocks(const Backward<C>& work, int64_t begin, int64_t end) {
  const int64_t dim = work.dim;
  const Numbers<C> block(new C[kFeaturesPerBlock * dim]);
  TokensView view = work.grad;
  view.batch = kFeaturesPerBlock * view.cell;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kFeaturesPerBlock, count = std::min(kFeaturesPerBlock, work.batch - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t feature = first + i;
      const C* __restrict const x = work.rows + feature * work.stride;
      C* __restrict const sum = block.get() + i * dim;
      std::fill(sum, sum + dim, C(0));
      for (int64_t p = work.lists.begins[feature]; p < work.lists.begins[feature + 1]; ++p) {
        const C* __restrict const other = work.rows + work.lists.others[p] * work.stride;
        const C weight = work.lists.weights[p];
        for (int64_t d = 0; d < dim; ++d) sum[d] += weight * (x[d] - other[d]);
      }
      if (work.lengths.length == nullptr) {
        for (int64_t d = 0; d < dim; ++d) sum[d] *= work.scale;
      } else {
        const C length = work.lengths.length[feature], along = work.lists.along[feature];
        for (int64_t d = 0; d < dim; ++d) sum[d] = (sum[d] - along * x[d]) * work.scale / length;
      }
    }
    store_rows(view, index, count, dim, block.get());
  }
}

}  // namespace motarfuse
