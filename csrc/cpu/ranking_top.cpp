// collect_top on the CPU. A row is scanned for float32 scores that may be among its best so far; those are few after the
// first tile. They are scored exactly, sorted, and merged with what the row has. Rows are over threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../ranking_call.h"

namespace motarfuse {
namespace {

struct PairRules {
  const int64_t *query_camids = nullptr, *gallery_camids = nullptr, *query_pids = nullptr, *gallery_pids = nullptr;
  int camera_rule = kAnyLabel, pid_rule = kAnyLabel;
  const double *query_times = nullptr, *gallery_times = nullptr;
  double earliest = 0.0, latest = 0.0;

  bool any() const { return camera_rule != kAnyLabel || pid_rule != kAnyLabel || query_times != nullptr; }

  bool pass(int64_t row, int64_t column) const {
    if (camera_rule != kAnyLabel && !fulfils(camera_rule, query_camids[row], gallery_camids[column])) return false;
    if (pid_rule != kAnyLabel && !fulfils(pid_rule, query_pids[row], gallery_pids[column])) return false;
    if (query_times == nullptr) return true;
    const double later = gallery_times[column] - query_times[row];
    return later >= earliest && later <= latest;  // NaN is not
  }
};

struct TopCall {
  ExactCall exact;
  TileCall tile;
  const float* slack = nullptr;
  PairRules rules;
  bool largest = true;
  int64_t k = 0;
  double* values = nullptr;
  int64_t *indices = nullptr, *filled = nullptr;

  // Scores so that the larger are the better ones. NaN, which sorting cannot place, is the worst.
  double turned(double score) const {
    const double better = largest ? score : -score;
    return better != better ? -std::numeric_limits<double>::infinity() : better;
  }

  // The smallest float32 score that may be one of the best k. Above -inf, which marks what does not count.
  float bound(int64_t row) const {
    constexpr float kLowest = std::numeric_limits<float>::lowest();
    if (filled[row] < k) return kLowest;
    return std::max(band_of(turned(values[row * k + k - 1]), slack[row]).low, kLowest);
  }
};

struct TopRows {
  void (*of_float)(const TopCall&, int64_t, int64_t);
  void (*of_double)(const TopCall&, int64_t, int64_t);
};

struct Entry {
  double score;
  int64_t index;

  bool operator<(const Entry& other) const { return comes_before(score, index, other.score, other.index); }
};

// What a thread needs for a row.
struct TopWork {
  std::vector<double> query, scores;
  std::vector<int64_t> columns;
  std::vector<float> keys, sorted;
  std::vector<Entry> found, merged;

  void begin() {
    columns.clear();
    keys.clear();
  }

  // Leaves out what k of the candidates are surely better than.
  void cut(int64_t k, float slack) {
    if (static_cast<int64_t>(columns.size()) <= k) return;
    sorted.clear();
    std::copy_if(keys.begin(), keys.end(), std::back_inserter(sorted), [](float key) { return key == key; });
    if (static_cast<int64_t>(sorted.size()) <= k) return;
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
    // Each of k has an exact score of at least the k-th less the slack, and so has what is kept, perhaps.
    const float least = rounded_down(static_cast<double>(sorted[k - 1]) - 2.0 * static_cast<double>(slack));
    size_t kept = 0;
    for (size_t i = 0; i < columns.size(); ++i) {
      if (keys[i] < least) continue;
      columns[kept++] = columns[i];
    }
    columns.resize(kept);
  }

  // The best k of what the row has and of the candidates.
  void merge(const TopCall& call, int64_t row) {
    const int64_t k = call.k, filled = call.filled[row];
    double* const values = call.values + row * k;
    int64_t* const indices = call.indices + row * k;
    const auto known = [&](int64_t i) { return Entry{call.turned(values[i]), indices[i]}; };
    found.clear();
    const Entry last = filled == k ? known(k - 1) : Entry{};
    for (size_t i = 0; i < columns.size(); ++i) {
      const Entry entry{call.turned(scores[i]), call.tile.first + columns[i]};
      if (filled < k || entry < last) found.push_back(entry);
    }
    if (found.empty()) return;
    std::sort(found.begin(), found.end());
    const int64_t fresh = static_cast<int64_t>(found.size()), total = std::min(k, filled + fresh);
    merged.clear();
    for (int64_t old = 0, next = 0; old + next < total;) {
      const bool takes_old = old < filled && (next == fresh || !(found[next] < known(old)));
      merged.push_back(takes_old ? known(old++) : found[next++]);
    }
    for (int64_t i = 0; i < total; ++i) {
      values[i] = call.largest ? merged[i].score : -merged[i].score;
      indices[i] = merged[i].index;
    }
    call.filled[row] = total;
  }
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "ranking_top_rows.h"
#include "ranking_variants.h"

namespace motarfuse {
namespace {

// The labels or times of both sides where a rule reads them, null otherwise.
template <class T>
std::pair<const T*, const T*> both_sides(const char* what, const std::optional<Tensor>& query,
                                         const std::optional<Tensor>& gallery, const Tensor& scores, ScalarType type) {
  STD_TORCH_CHECK(query.has_value() == gallery.has_value(), "collect_top: ", what, " must be given for both sides");
  if (!query.has_value()) return {nullptr, nullptr};
  check_list("collect_top", what, *query, type, scores.size(0), scores);
  check_list("collect_top", what, *gallery, type, scores.size(1), scores);
  return {pointer_to<T>(*query), pointer_to<T>(*gallery)};
}

int label_rule(const char* what, int64_t rule, bool has_labels) {
  STD_TORCH_CHECK(rule >= kAnyLabel && rule <= kMustEqual, "collect_top: ", what, " is 0, 1 or 2, not ", rule);
  return has_labels ? static_cast<int>(rule) : kAnyLabel;
}

}  // namespace

void collect_top_cpu(Tensor scores, const Tensor& slack, const Tensor& query, const Tensor& gallery, int64_t first,
                     const Tensor& left_out_starts, const Tensor& left_out, std::string form,
                     std::vector<int64_t> widths, double weight, double epsilon, bool largest,
                     const std::optional<Tensor>& query_camids, const std::optional<Tensor>& gallery_camids,
                     int64_t camera_rule, const std::optional<Tensor>& query_pids,
                     const std::optional<Tensor>& gallery_pids, int64_t pid_rule,
                     const std::optional<Tensor>& query_times, const std::optional<Tensor>& gallery_times,
                     double earliest, double latest, Tensor values, Tensor indices, Tensor filled) {
  const char* const name = "collect_top";
  TopCall call;
  call.exact = exact_call(name, query, gallery, form, widths, weight, epsilon);
  call.tile = tile_call(name, scores, first, left_out_starts, left_out);
  check_tile_rows(name, call.exact, call.tile, slack, scores);
  check_starts(name, "left_out_starts", left_out_starts, left_out.size(0));
  call.slack = pointer_to<float>(slack);
  call.largest = largest;
  PairRules& rules = call.rules;
  std::tie(rules.query_camids, rules.gallery_camids) =
      both_sides<int64_t>("camids", query_camids, gallery_camids, scores, ScalarType::Long);
  std::tie(rules.query_pids, rules.gallery_pids) =
      both_sides<int64_t>("pids", query_pids, gallery_pids, scores, ScalarType::Long);
  std::tie(rules.query_times, rules.gallery_times) =
      both_sides<double>("times", query_times, gallery_times, scores, ScalarType::Double);
  rules.camera_rule = label_rule("camera_rule", camera_rule, query_camids.has_value());
  rules.pid_rule = label_rule("pid_rule", pid_rule, query_pids.has_value());
  rules.earliest = earliest;
  rules.latest = latest;
  STD_TORCH_CHECK(values.dim() == 2 && values.size(0) == call.tile.rows && values.is_contiguous() &&
                      values.scalar_type() == ScalarType::Double,
                  name, ": values must be (n, k), float64 and contiguous");
  call.k = values.size(1);
  STD_TORCH_CHECK(has_shape(indices, {call.tile.rows, call.k}) && indices.is_contiguous() &&
                      indices.scalar_type() == ScalarType::Long,
                  name, ": indices must be (n, k), int64 and contiguous");
  check_list(name, "filled", filled, ScalarType::Long, call.tile.rows, scores);
  call.values = pointer_to<double>(values);
  call.indices = pointer_to<int64_t>(indices);
  call.filled = pointer_to<int64_t>(filled);
  for (int64_t i = 0; i < call.tile.rows; ++i) {
    STD_TORCH_CHECK(call.filled[i] >= 0 && call.filled[i] <= call.k, name, ": filled must be between 0 and k");
  }
  if (call.k == 0) return;
  const TopRows& loops = best_rows();
  parallel_rows(call.tile.rows, call.tile.columns, [&](int64_t begin, int64_t end) {
    (call.exact.is_double ? loops.of_double : loops.of_float)(call, begin, end);
  });
}

}  // namespace motarfuse
