// batch_hard_triplet on the CPU: tiles of 32 x 32 pairs over threads, each pair once; then the loss of the chosen.
// The backward takes blocks of features, whose pairs it adds in order. No result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../views.h"
#include "batch_hard_triplet_backward.h"
#include "batch_hard_triplet_mining.h"
#include "simd.h"
#include "squared_distances.h"
#include "tokens.h"

namespace motarfuse {
namespace {

// Mining -------------------------------------------------------------------------------------------------------------

MOTARFUSE_VARIANTS(pack_float, (Mining<float>& mining, int64_t begin, int64_t end), (mining, begin, end),
                   pack_panels<float>(mining, begin, end))

MOTARFUSE_VARIANTS(mine_float, (const Mining<float>& mining, int64_t begin, int64_t end, Best<float>& found),
                   (mining, begin, end, found), mine_tiles<float>(mining, begin, end, found))

MOTARFUSE_VARIANTS(measure_float,
                   (const Mining<float>& mining, const Best<float>& found, double* distances, int64_t begin,
                    int64_t end),
                   (mining, found, distances, begin, end), measure<float>(mining, found, distances, begin, end))

void pack(Mining<float>& mining, int64_t begin, int64_t end) { pack_float(mining, begin, end); }
void pack(Mining<double>& mining, int64_t begin, int64_t end) { pack_panels<double>(mining, begin, end); }

void mine(const Mining<float>& mining, int64_t begin, int64_t end, Best<float>& best) {
  mine_float(mining, begin, end, best);
}
void mine(const Mining<double>& mining, int64_t begin, int64_t end, Best<double>& best) {
  mine_tiles<double>(mining, begin, end, best);
}

void measure_pairs(const Mining<float>& mining, const Best<float>& best, double* distances, int64_t begin,
                   int64_t end) {
  measure_float(mining, best, distances, begin, end);
}
void measure_pairs(const Mining<double>& mining, const Best<double>& best, double* distances, int64_t begin,
                   int64_t end) {
  measure<double>(mining, best, distances, begin, end);
}

template <class T>
void read_labels(const Tensor& labels, std::vector<int64_t>& values) {
  const T* const source = static_cast<const T*>(labels.data_ptr());
  const int64_t stride = labels.stride(0);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(source[i * stride]);
}

// Labels as numbers from 0 on, which fit the lanes of every type computed in.
template <class K>
void number_identities(const Tensor& labels, int64_t batch, std::vector<K>& identities) {
  std::vector<int64_t> values(batch);
  switch (labels.scalar_type()) {
    case ScalarType::Long: read_labels<int64_t>(labels, values); break;
    case ScalarType::Int: read_labels<int32_t>(labels, values); break;
    case ScalarType::Short: read_labels<int16_t>(labels, values); break;
    case ScalarType::Char: read_labels<int8_t>(labels, values); break;
    case ScalarType::Byte: read_labels<uint8_t>(labels, values); break;
    default: STD_TORCH_CHECK(false, "batch_hard_triplet: labels must be integers");
  }
  std::vector<int64_t> people(values);
  std::sort(people.begin(), people.end());
  people.erase(std::unique(people.begin(), people.end()), people.end());
  for (int64_t i = 0; i < batch; ++i) {
    identities[i] = static_cast<K>(std::lower_bound(people.begin(), people.end(), values[i]) - people.begin());
  }
}

// Loss ---------------------------------------------------------------------------------------------------------------

// The distance of a pair, and what its difference of features is weighted with in the gradient.
struct Distance {
  double value, weight;

  static Distance of_cosine(double distance) { return {distance, 1.0}; }
  static Distance of_square(double square) {
    const bool apart = !(square < 1e-12);  // NaN is
    const double value = apart ? std::sqrt(square) : 1e-6;
    return {value, apart ? 1.0 / value : 0.0};
  }
};

// `cosines` (B, 2): distances of the pairs under the cosine, null otherwise.
template <class C>
void add_up(const Best<C>& best, const double* cosines, int64_t batch, const std::optional<double>& margin,
            const Pairs<C>& pairs, C* loss, int64_t* skipped) {
  double total = 0.0;
  int64_t count = 0;
  for (int64_t i = 0; i < batch; ++i) {
    if (best.far[i] == kNobodyFar<C> || best.near[i] == kNobodyNear<C>) {
      pairs.set(i, -1, C(0), C(0));
      pairs.set(batch + i, -1, C(0), C(0));
      continue;
    }
    const bool unknown = best.near[i] == kUnknownNear<C>;
    const C square = unknown ? std::numeric_limits<C>::quiet_NaN() : of_bits<C>(best.near[i]);
    const Distance far = cosines != nullptr ? Distance::of_cosine(cosines[2 * i])
                                            : Distance::of_square(static_cast<double>(of_bits<C>(best.far[i])));
    const Distance near = cosines != nullptr ? Distance::of_cosine(cosines[2 * i + 1])
                                             : Distance::of_square(static_cast<double>(square));
    double gap = far.value - near.value, slope;
    if (margin.has_value()) {
      gap += *margin;
      total += gap < 0.0 ? 0.0 : gap;
      slope = gap <= 0.0 ? 0.0 : gap > 0.0 ? 1.0 : gap;  // NaN stays
    } else {
      const double small = std::exp(-std::fabs(gap));
      total += (gap < 0.0 ? 0.0 : gap) + std::log1p(small);
      slope = (gap < 0.0 ? small : 1.0) / (1.0 + small);
    }
    ++count;
    pairs.set(i, best.farthest[i], static_cast<C>(far.value), static_cast<C>(slope * far.weight));
    pairs.set(batch + i, best.nearest[i], static_cast<C>(near.value), static_cast<C>(-slope * near.weight));
  }
  *loss = static_cast<C>(total / static_cast<double>(std::max<int64_t>(count, 1)));
  *skipped = batch - count;
}

// Backward -----------------------------------------------------------------------------------------------------------

MOTARFUSE_VARIANTS(pack_backward_float, (Backward<float>& work, int64_t begin, int64_t end), (work, begin, end),
                   pack_blocks<float>(work, begin, end))

MOTARFUSE_VARIANTS(backward_float, (const Backward<float>& work, int64_t begin, int64_t end), (work, begin, end),
                   backward_blocks<float>(work, begin, end))

void pack(Backward<float>& work, int64_t begin, int64_t end) { pack_backward_float(work, begin, end); }
void pack(Backward<double>& work, int64_t begin, int64_t end) { pack_blocks<double>(work, begin, end); }

void run(const Backward<float>& work, int64_t begin, int64_t end) { backward_float(work, begin, end); }
void run(const Backward<double>& work, int64_t begin, int64_t end) { backward_blocks<double>(work, begin, end); }

// Calls --------------------------------------------------------------------------------------------------------------

TokensView rows_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), 0, tensor.stride(0), tensor.stride(1)};
}

bool is_cosine(const std::string& metric) {
  STD_TORCH_CHECK(metric == "cosine" || metric == "euclidean", "batch_hard_triplet: metric is cosine or euclidean");
  return metric == "cosine";
}

void check_features(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 2 && is_floating(features.scalar_type()),
                  "batch_hard_triplet: features must have 2 dimensions and a floating-point dtype");
  STD_TORCH_CHECK(features.size(0) <= std::numeric_limits<int32_t>::max(), "batch_hard_triplet: too many features");
}

template <class C>
C* data_of(const Tensor& tensor) {
  return static_cast<C*>(tensor.data_ptr());
}

template <class C>
void forward(const Tensor& features, const Tensor& labels, const std::optional<double>& margin, bool cosine,
             bool save_statistics, const TripletResults& results) {
  const auto& [loss, skipped, chosen, distances, weights, length, lacking] = results;
  Mining<C> mining;
  mining.batch = features.size(0);
  mining.dim = features.size(1);
  mining.cosine = cosine;
  mining.features = rows_view(features);
  const int64_t panels = mining.num_panels(), padded = panels * kPanel, dim = mining.dim;
  mining.identities.assign(padded, Key<C>(-1));
  number_identities(labels, mining.batch, mining.identities);
  mining.panels.reset(new C[padded * dim]);
  if (cosine) {
    mining.lengths = {data_of<C>(length), data_of<C>(lacking)};
    mining.exact_lengths.resize(padded);
    mining.rows = data_of<C>(features);
    mining.stride = mining.features.cell;
    if (!in_place<C>(mining.features)) {
      mining.converted.reset(new C[mining.batch * dim]);
      mining.rows = mining.converted.get();
      mining.stride = dim;
    }
    mining.lacking.resize(padded);
    mining.is_zero.resize(padded);
  }
  parallel_rows(panels, kPanel * dim, [&](int64_t begin, int64_t end) { pack(mining, begin, end); });
  Best<C> best(padded);
  std::mutex merging;
  // A difference costs about an eighth of a cell of part_moments.
  parallel_rows(panels * (panels + 1) / 2, kPanel * kPanel * dim / 8, [&](int64_t begin, int64_t end) {
    Best<C> part(padded);
    mine(mining, begin, end, part);
    const std::lock_guard<std::mutex> lock(merging);
    best.merge(part);
  });
  Pairs<C> pairs;
  if (save_statistics) pairs = {data_of<int32_t>(chosen), data_of<C>(distances), data_of<C>(weights)};
  std::vector<double> cosines(cosine ? 2 * mining.batch : 0);
  if (cosine) {
    parallel_rows(mining.batch, dim, [&](int64_t begin, int64_t end) {
      measure_pairs(mining, best, cosines.data(), begin, end);
    });
  }
  add_up(best, cosine ? cosines.data() : nullptr, mining.batch, margin, pairs, data_of<C>(loss),
         data_of<int64_t>(skipped));
}

}  // namespace

TripletResults batch_hard_triplet_forward_cpu(const Tensor& features, const Tensor& labels,
                                              std::optional<double> margin, std::string metric, bool save_statistics) {
  check_features(features);
  const int64_t batch = features.size(0);
  STD_TORCH_CHECK(has_shape(labels, {batch}), "batch_hard_triplet: labels must have one number for each feature");
  const bool cosine = is_cosine(metric), is_double = features.scalar_type() == ScalarType::Double;
  const ScalarType compute = compute_type(features.scalar_type());
  const auto pairs = [&](ScalarType type) {
    return save_statistics ? new_empty(features, {2, batch}, type) : new_empty(features, {0}, type);
  };
  const auto rows = [&] { return new_empty(features, {cosine ? batch : 0}, compute); };
  const TripletResults results{new_empty(features, {}, compute),
                               new_empty(features, {}, ScalarType::Long),
                               pairs(ScalarType::Int),
                               pairs(compute),
                               pairs(compute),
                               rows(),
                               rows()};
  if (is_double) {
    forward<double>(features, labels, margin, cosine, save_statistics, results);
  } else {
    forward<float>(features, labels, margin, cosine, save_statistics, results);
  }
  return results;
}

namespace {

template <class C>
void backward(const Tensor& grad_loss, const Tensor& features, const Tensor& skipped, const Pairs<C>& pairs,
              const Lengths<C>& lengths, const Tensor& grad) {
  const int64_t batch = features.size(0), dim = features.size(1);
  const int64_t blocks = (batch + kFeaturesPerBlock - 1) / kFeaturesPerBlock;
  const PairLists<C> lists(pairs, lengths.lacking, batch);
  const int64_t count = std::max<int64_t>(batch - *data_of<int64_t>(skipped), 1);
  const C scale = read_as<C>(grad_loss.data_ptr(), grad_loss.scalar_type(), 0) / static_cast<C>(count);
  const TokensView view = rows_view(features);
  Backward<C> work{batch, dim, view, rows_view(grad), lengths, {}, data_of<C>(features), view.cell, scale, lists};
  if (lengths.length != nullptr || !in_place<C>(view)) {
    work.packed.reset(new C[batch * dim]);
    work.rows = work.packed.get();
    work.stride = dim;
    parallel_rows(blocks, kFeaturesPerBlock * dim, [&](int64_t begin, int64_t end) { pack(work, begin, end); });
  }
  parallel_rows(blocks, kFeaturesPerBlock * dim, [&](int64_t begin, int64_t end) { run(work, begin, end); });
}

}  // namespace

Tensor batch_hard_triplet_backward_cpu(const Tensor& grad_loss, const Tensor& features, const Tensor& skipped,
                                       const Tensor& chosen, const Tensor& distances, const Tensor& weights,
                                       const Tensor& length, const Tensor& lacking, std::string metric) {
  check_features(features);
  const int64_t batch = features.size(0);
  const bool cosine = is_cosine(metric), is_double = features.scalar_type() == ScalarType::Double;
  const ScalarType compute = compute_type(features.scalar_type());
  const auto is = [](const Tensor& tensor, std::initializer_list<int64_t> shape, ScalarType type) {
    return has_shape(tensor, shape) && tensor.scalar_type() == type && tensor.is_contiguous();
  };
  STD_TORCH_CHECK(is(chosen, {2, batch}, ScalarType::Int) && is(distances, {2, batch}, compute) &&
                      is(weights, {2, batch}, compute) && is(skipped, {}, ScalarType::Long) &&
                      (!cosine || (is(length, {batch}, compute) && is(lacking, {batch}, compute))),
                  "batch_hard_triplet: these are not what a forward with statistics saved for these features");
  STD_TORCH_CHECK(has_shape(grad_loss, {}) && is_floating(grad_loss.scalar_type()),
                  "batch_hard_triplet: grad_loss must be a floating-point scalar");
  Tensor grad = torch::stable::empty_like(features);
  if (grad.numel() == 0) return grad;
  const auto run = [&](auto zero) {
    using C = decltype(zero);
    const Pairs<C> pairs{data_of<int32_t>(chosen), data_of<C>(distances), data_of<C>(weights)};
    const Lengths<C> lengths = cosine ? Lengths<C>{data_of<C>(length), data_of<C>(lacking)} : Lengths<C>{};
    backward<C>(grad_loss, features, skipped, pairs, lengths, grad);
  };
  is_double ? run(double{}) : run(float{});
  return grad;
}

}  // namespace motarfuse
