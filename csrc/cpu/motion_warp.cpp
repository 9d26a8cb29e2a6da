// motion_warp on the CPU. The forward takes blocks of cells: masks and flow of a block in the first-level cache, then
// four rows of the source for each cell. The backward takes whole images, so that the gradient of the source is summed
// in one thread, in the order of the cells.
#include "../motion_warp.h"

#include <vector>

#include "../library.h"
#include "../motion_warp_call.h"
#include "../parallel.h"
#include "cells.h"
#include "simd.h"
#include "tokens.h"

namespace motarfuse {
namespace {

constexpr int64_t kCellsPerBlock = 128;

// What a call has, whichever image it looks at.
template <class C>
struct Work {
  const WarpCall& call;
  const CellTable<C>& table;
};

// Numbers of `cells` consecutive cells of an image.
template <class C>
struct Field {
  C *masks;       // (K + 1, cells): exponentials, then the masks where the backward needs them
  C *maximum, *sum, *shift_x, *shift_y;
  C* converted;  // a row of logits
};

template <class C>
MOTARFUSE_INLINE void clear(C* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = C(0);
}

// Largest logit of each cell, the exponentials of all channels against it, and their sum.
template <class C>
MOTARFUSE_INLINE void exponentials(const LogitsView& logits, int64_t batch, int64_t channels, int64_t first,
                                   int64_t cells, const Field<C>& field) {
  C* __restrict const maximum = field.maximum;
  C* __restrict const sum = field.sum;
  for (int64_t k = 0; k < channels; ++k) {
    const C* __restrict const row = row_of_logits(logits, batch, k, cells, field.converted, first);
    if (k == 0) {
      for (int64_t i = 0; i < cells; ++i) maximum[i] = row[i];
    } else {
      for (int64_t i = 0; i < cells; ++i) maximum[i] = row[i] > maximum[i] ? row[i] : maximum[i];
    }
  }
  clear(sum, cells);
  for (int64_t k = 0; k < channels; ++k) {
    const C* __restrict const row = row_of_logits(logits, batch, k, cells, field.converted, first);
    C* __restrict const mask = field.masks + k * cells;
    for (int64_t i = 0; i < cells; ++i) {
      mask[i] = exp_nonpositive(row[i] - maximum[i]);
      sum[i] += mask[i];
    }
  }
}

// d = sum_j e_j d_j / sum_j e_j; the background stays.
template <class C>
MOTARFUSE_INLINE void displacements(const Work<C>& work, const PartMotion<C>* motions, int64_t first, int64_t cells,
                                    const Field<C>& field) {
  const C* __restrict const x = work.table.x.data() + first;
  const C* __restrict const y = work.table.y.data() + first;
  C* __restrict const shift_x = field.shift_x;
  C* __restrict const shift_y = field.shift_y;
  const C* __restrict const sum = field.sum;
  clear(shift_x, cells);
  clear(shift_y, cells);
  for (int64_t k = 0; k < work.call.parts; ++k) {
    const PartMotion<C> motion = motions[k];
    const C* __restrict const mask = field.masks + (k + 1) * cells;
    for (int64_t i = 0; i < cells; ++i) {
      shift_x[i] += mask[i] * motion.displacement_x(x[i], y[i]);
      shift_y[i] += mask[i] * motion.displacement_y(x[i], y[i]);
    }
  }
  for (int64_t i = 0; i < cells; ++i) {
    shift_x[i] /= sum[i];
    shift_y[i] /= sum[i];
  }
}

template <class C>
MOTARFUSE_INLINE void read_motions(const WarpCall& call, int64_t batch, PosturePair<C>* pairs,
                                   PartMotion<C>* motions) {
  for (int64_t k = 0; k < call.parts; ++k) {
    pairs[k] = read_postures<C>(call.postures, batch, k);
    motions[k] = part_motion(pairs[k]);
  }
}

// Where an image's rows lie: in the tensor, or converted in `scratch`.
template <class C>
struct Rows {
  C* data;
  int64_t stride;

  MOTARFUSE_INLINE C* operator[](int64_t cell) const { return data + cell * stride; }
};

template <class C>
MOTARFUSE_INLINE void blend(const C* __restrict a, const C* __restrict b, const C* __restrict c, const C* __restrict d,
                            C wa, C wb, C wc, C wd, int64_t channels, C* __restrict out) {
  for (int64_t i = 0; i < channels; ++i) out[i] = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i]);
}

template <class C>
MOTARFUSE_INLINE void forward_blocks(const Work<C>& work, int64_t begin, int64_t end) {
  const WarpCall& call = work.call;
  const int64_t all_cells = call.num_cells(), channels = call.channels, block = std::min(kCellsPerBlock, all_cells);
  const int64_t blocks = (all_cells + block - 1) / block;
  const bool direct = in_place<C>(call.source);
  std::vector<C> scratch((call.parts + 8) * block + channels + (direct ? 0 : all_cells * channels));
  std::vector<PosturePair<C>> pairs(call.parts);
  std::vector<PartMotion<C>> motions(call.parts);
  C* next = scratch.data();
  const auto take = [&](int64_t count) {
    C* const taken = next;
    next += count;
    return taken;
  };
  const Field<C> field{take((call.parts + 1) * block), take(block), take(block), take(block), take(block), take(block)};
  C *const seen = take(block), *const background = take(block), *const row = take(channels);
  C* const converted = next;
  int64_t current = -1;
  Rows<C> source{converted, channels};
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / blocks, first = index % blocks * block, cells = std::min(block, all_cells - first);
    if (batch != current) {
      current = batch;
      read_motions(call, batch, pairs.data(), motions.data());
      if (direct) {
        source = {row_at<C>(call.source, batch, 0), call.source.cell};
      } else if (channels > 0) {
        load_rows(call.source, batch, all_cells, channels, converted);
      }
    }
    exponentials(call.logits, batch, call.parts + 1, first, cells, field);
    displacements(work, motions.data(), first, cells, field);
    for (int64_t i = 0; i < cells; ++i) background[i] = field.masks[i] / field.sum[i];
    with_type<C>(call.flow.data, call.flow.type, batch * call.flow.batch + first * call.flow.cell, [&](auto* flow) {
      using T = std::remove_reference_t<decltype(*flow)>;
      for (int64_t i = 0; i < cells; ++i) {
        flow[2 * i] = static_cast<T>(work.table.x[first + i] + field.shift_x[i]);
        flow[2 * i + 1] = static_cast<T>(work.table.y[first + i] + field.shift_y[i]);
      }
    });
    for (int64_t i = 0; channels > 0 && i < cells; ++i) {
      const int width = static_cast<int>(call.width), cell = static_cast<int>(first + i);
      const BilinearSample<C> sample(cell / width, cell % width, field.shift_x[i], field.shift_y[i],
                                     static_cast<int>(call.height), width);
      C* const out = direct ? row_at<C>(call.warped, batch, first + i) : row;
      blend(source[sample.upper_left(width)], source[sample.upper_right(width)], source[sample.lower_left(width)],
            source[sample.lower_right(width)], sample.weight_upper_left(), sample.weight_upper_right(),
            sample.weight_lower_left(), sample.weight_lower_right(), channels, out);
      if (!direct) store_row(call.warped, batch, first + i, channels, row);
    }
    if (call.source_logits.data != nullptr) {
      exponentials(call.source_logits, batch, call.parts + 1, first, cells, field);
      for (int64_t i = 0; i < cells; ++i) seen[i] = visibility(field.masks[i] / field.sum[i], background[i]);
    } else {
      for (int64_t i = 0; i < cells; ++i) seen[i] = C(1);
    }
    store_row_of_logits(call.visibility, batch, 0, cells, seen, first);
  }
}

// Pointers to the four cells' rows, of the source or of its gradient.
template <class C>
struct Corners {
  C *upper_left, *upper_right, *lower_left, *lower_right;
};

// sum_c g_c d(sampled_c)/d(at), for both directions.
template <class C>
MOTARFUSE_INLINE void derivatives(const C* __restrict g, const Corners<C>& source, C wx, C wy, int64_t channels, C& by_x,
                                  C& by_y) {
  const C* __restrict const a = source.upper_left;
  const C* __restrict const b = source.upper_right;
  const C* __restrict const c = source.lower_left;
  const C* __restrict const d = source.lower_right;
  C sum_x = C(0), sum_y = C(0);
#pragma omp simd reduction(+ : sum_x, sum_y)
  for (int64_t i = 0; i < channels; ++i) {
    sum_x += g[i] * sampled_by_x(a[i], b[i], c[i], d[i], wy);
    sum_y += g[i] * sampled_by_y(a[i], b[i], c[i], d[i], wx);
  }
  by_x = sum_x;
  by_y = sum_y;
}

template <class C>
MOTARFUSE_INLINE void spread(const C* __restrict g, const Corners<C>& target, C wa, C wb, C wc, C wd, int64_t channels) {
  C* __restrict const a = target.upper_left;
  C* __restrict const b = target.upper_right;
  C* __restrict const c = target.lower_left;
  C* __restrict const d = target.lower_right;
  for (int64_t i = 0; i < channels; ++i) {
    a[i] += wa * g[i];
    b[i] += wb * g[i];
    c[i] += wc * g[i];
    d[i] += wd * g[i];
  }
}

// The sampling's gradients: to the source, and to the flow, which is added to `grad_x` and `grad_y`.
template <class C>
MOTARFUSE_INLINE void backward_sampling(const WarpCall& call, int64_t batch, const Field<C>& field, bool wants_flow,
                                        C* grad_x, C* grad_y, C* row, C* nowhere, C* source_rows, C* grad_rows) {
  const int64_t cells = call.num_cells(), channels = call.channels;
  const int height = static_cast<int>(call.height), width = static_cast<int>(call.width);
  const bool wants_source = call.grad_source.data != nullptr, direct_grad = in_place<C>(call.warped);
  Rows<C> source{source_rows, channels}, target{grad_rows, channels};
  if (in_place<C>(call.source)) {
    source = {row_at<C>(call.source, batch, 0), call.source.cell};
  } else if (wants_flow) {
    load_rows(call.source, batch, cells, channels, source_rows);
  }
  if (wants_source) {
    if (in_place<C>(call.grad_source)) target = {row_at<C>(call.grad_source, batch, 0), call.grad_source.cell};
    for (int64_t n = 0; n < cells; ++n) clear(target[n], channels);
  }
  for (int64_t n = 0; n < cells; ++n) {
    const int cell = static_cast<int>(n);
    const BilinearSample<C> sample(cell / width, cell % width, field.shift_x[n], field.shift_y[n], height, width);
    const C* g = row;
    if (direct_grad) {
      g = row_at<C>(call.warped, batch, n);
    } else {
      load_row(call.warped, batch, n, channels, row);
    }
    const int64_t at[4] = {sample.upper_left(width), sample.upper_right(width), sample.lower_left(width),
                           sample.lower_right(width)};
    if (wants_flow) {
      C by_x, by_y;
      derivatives(g, Corners<C>{source[at[0]], source[at[1]], source[at[2]], source[at[3]]}, sample.x.weight,
                  sample.y.weight, channels, by_x, by_y);
      // A position that does not move takes none, however large the derivative.
      if (sample.x.moves) grad_x[n] += sample.x.slope(width) * by_x;
      if (sample.y.moves) grad_y[n] += sample.y.slope(height) * by_y;
    }
    if (wants_source) {
      // Rows must differ. A second neighbour that is the first one has no share.
      const bool right = sample.x.second != sample.x.first, below = sample.y.second != sample.y.first;
      const Corners<C> corners{target[at[0]], right ? target[at[1]] : nowhere, below ? target[at[2]] : nowhere + channels,
                               right && below ? target[at[3]] : nowhere + 2 * channels};
      spread(g, corners, sample.weight_upper_left(), sample.weight_upper_right(), sample.weight_lower_left(),
             sample.weight_lower_right(), channels);
    }
  }
  if (wants_source && !in_place<C>(call.grad_source)) {
    store_rows(call.grad_source, batch, cells, channels, grad_rows);
  }
}

// dlogits of a channel: M <f, d_j - d>.
template <class C, class Motion>
MOTARFUSE_INLINE void logit_gradients(const Field<C>& field, const C* __restrict mask, const C* __restrict x,
                                      const C* __restrict y, const C* __restrict grad_x, const C* __restrict grad_y,
                                      int64_t cells, const Motion& motion, C* __restrict out) {
  for (int64_t i = 0; i < cells; ++i) {
    out[i] = mask[i] * (grad_x[i] * (motion.displacement_x(x[i], y[i]) - field.shift_x[i]) +
                        grad_y[i] * (motion.displacement_y(x[i], y[i]) - field.shift_y[i]));
  }
}

// The background's.
template <class C>
struct Still {
  MOTARFUSE_INLINE C displacement_x(C, C) const { return C(0); }
  MOTARFUSE_INLINE C displacement_y(C, C) const { return C(0); }
};

template <class C>
MOTARFUSE_INLINE MotionSums<C> motion_sums(const PartMotion<C>& motion, const C* __restrict mask, const C* __restrict x,
                                           const C* __restrict y, const C* __restrict grad_x,
                                           const C* __restrict grad_y, int64_t cells) {
  C sum_x = C(0), sum_y = C(0), xx = C(0), xy = C(0), yx = C(0), yy = C(0);
#pragma omp simd reduction(+ : sum_x, sum_y, xx, xy, yx, yy)
  for (int64_t i = 0; i < cells; ++i) {
    const C weighted_x = mask[i] * grad_x[i], weighted_y = mask[i] * grad_y[i];
    const C offset_x = x[i] - motion.target_x, offset_y = y[i] - motion.target_y;
    sum_x += weighted_x;
    sum_y += weighted_y;
    xx += weighted_x * offset_x;
    xy += weighted_x * offset_y;
    yx += weighted_y * offset_x;
    yy += weighted_y * offset_y;
  }
  return {sum_x, sum_y, {xx, xy, yx, yy}};
}

template <class C>
MOTARFUSE_INLINE void backward_images(const Work<C>& work, int64_t begin, int64_t end) {
  const WarpCall& call = work.call;
  const int64_t cells = call.num_cells(), channels = call.channels, parts = call.parts;
  const bool samples = call.warped.data != nullptr && channels > 0;
  const bool wants_field = call.wants_postures() || call.grad_logits.data != nullptr;
  const bool converts_source = samples && wants_field && !in_place<C>(call.source);
  const bool converts_grad = samples && call.grad_source.data != nullptr && !in_place<C>(call.grad_source);
  const int64_t per_image = cells * channels;
  std::vector<C> scratch((parts + 10) * cells + 4 * channels + (converts_source ? per_image : 0) +
                         (converts_grad ? per_image : 0));
  std::vector<PosturePair<C>> pairs(parts);
  std::vector<PartMotion<C>> motions(parts);
  C* next = scratch.data();
  const auto take = [&](int64_t count) {
    C* const taken = next;
    next += count;
    return taken;
  };
  const Field<C> field{take((parts + 1) * cells), take(cells), take(cells), take(cells), take(cells), take(cells)};
  C *const grad_x = take(cells), *const grad_y = take(cells), *const out = take(cells), *const background = take(cells);
  C *const row = take(channels), *const nowhere = take(3 * channels);
  C *const source_rows = take(converts_source ? per_image : 0), *const grad_rows = take(converts_grad ? per_image : 0);
  const C *const x = work.table.x.data(), *const y = work.table.y.data();
  for (int64_t batch = begin; batch < end; ++batch) {
    read_motions(call, batch, pairs.data(), motions.data());
    exponentials(call.logits, batch, parts + 1, 0, cells, field);
    displacements(work, motions.data(), 0, cells, field);
    for (int64_t k = 0; k <= parts; ++k) {
      C* __restrict const mask = field.masks + k * cells;
      const C* __restrict const sum = field.sum;
      for (int64_t i = 0; i < cells; ++i) mask[i] /= sum[i];
    }
    clear(grad_x, cells);
    clear(grad_y, cells);
    if (wants_field && call.flow.data != nullptr) {
      with_type<C>(call.flow.data, call.flow.type, batch * call.flow.batch, [&](const auto* grad) {
        for (int64_t i = 0; i < cells; ++i) {
          grad_x[i] = static_cast<C>(grad[i * call.flow.cell]);
          grad_y[i] = static_cast<C>(grad[i * call.flow.cell + call.flow.channel]);
        }
      });
    }
    if (samples) {
      backward_sampling(call, batch, field, wants_field, grad_x, grad_y, row, nowhere, source_rows, grad_rows);
    } else if (call.grad_source.data != nullptr && channels > 0) {
      clear(row, channels);
      for (int64_t n = 0; n < cells; ++n) store_row(call.grad_source, batch, n, channels, row);
    }
    if (call.grad_logits.data != nullptr) {
      logit_gradients(field, field.masks, x, y, grad_x, grad_y, cells, Still<C>{}, out);
      store_row_of_logits(call.grad_logits, batch, 0, cells, out);
    }
    for (int64_t k = 0; wants_field && k < parts; ++k) {
      const C* const mask = field.masks + (k + 1) * cells;
      if (call.grad_logits.data != nullptr) {
        logit_gradients(field, mask, x, y, grad_x, grad_y, cells, motions[k], out);
        store_row_of_logits(call.grad_logits, batch, k + 1, cells, out);
      }
      if (call.wants_postures()) {
        const MotionSums<C> sums = motion_sums(motions[k], mask, x, y, grad_x, grad_y, cells);
        write_postures(call.grad_postures, batch, k, posture_gradient(pairs[k], motions[k], sums));
      }
    }
    if (call.grad_source_logits.data == nullptr) continue;
    // dM_0^s = M_0 dvisibility, through the softmax of the source.
    if (call.visibility.data != nullptr) {
      const C* const incoming = row_of_logits(call.visibility, batch, 0, cells, out);
      for (int64_t i = 0; i < cells; ++i) background[i] = field.masks[i] * incoming[i];
    } else {
      clear(background, cells);
    }
    exponentials(call.source_logits, batch, parts + 1, 0, cells, field);
    for (int64_t i = 0; i < cells; ++i) grad_x[i] = field.masks[i] / field.sum[i];
    for (int64_t k = 0; k <= parts; ++k) {
      const C* const mask = field.masks + k * cells;
      const C own = k == 0 ? C(1) : C(0);
      for (int64_t i = 0; i < cells; ++i) out[i] = mask[i] / field.sum[i] * (own - grad_x[i]) * background[i];
      store_row_of_logits(call.grad_source_logits, batch, k, cells, out);
    }
  }
}

MOTARFUSE_VARIANTS(forward_float, (const Work<float>& work, int64_t begin, int64_t end), (work, begin, end),
                   forward_blocks<float>(work, begin, end))

MOTARFUSE_VARIANTS(backward_float, (const Work<float>& work, int64_t begin, int64_t end), (work, begin, end),
                   backward_images<float>(work, begin, end))

void forward_double(const Work<double>& work, int64_t begin, int64_t end) { forward_blocks<double>(work, begin, end); }

void backward_double(const Work<double>& work, int64_t begin, int64_t end) {
  backward_images<double>(work, begin, end);
}

// `cost` of an image in cells of part_moments: channels count as much as exponentials of a fourth of them.
template <class C, class F>
void over_images(const WarpCall& call, int64_t pieces, const F& function) {
  if (call.batch == 0) return;
  const CellTable<C> table(call.height, call.width);
  const Work<C> work{call, table};
  const int64_t cost = call.num_cells() * (call.parts + 1 + call.channels / 4);
  parallel_rows(call.batch * pieces, cost / pieces, [&](int64_t begin, int64_t end) { function(work, begin, end); });
}

}  // namespace

WarpResults motion_warp_forward_cpu(const Tensor& source, const Tensor& source_keypoints, const Tensor& source_affines,
                                    const Tensor& target_keypoints, const Tensor& target_affines,
                                    const Tensor& part_logits, const std::optional<Tensor>& source_part_logits,
                                    int64_t height, int64_t width) {
  const WarpInputs inputs{source,         source_keypoints, source_affines,    target_keypoints,
                          target_affines, part_logits,      source_part_logits};
  WarpCall call = warp_call(inputs, height, width);
  WarpResults results = allocate_warped(call, inputs);
  const int64_t blocks = (call.num_cells() + kCellsPerBlock - 1) / kCellsPerBlock;
  if (call.compute == ScalarType::Double) {
    over_images<double>(call, blocks, forward_double);
  } else {
    over_images<float>(call, blocks, forward_float);
  }
  return results;
}

WarpGradients motion_warp_backward_cpu(const std::optional<Tensor>& grad_warped, const std::optional<Tensor>& grad_flow,
                                       const std::optional<Tensor>& grad_visibility, const Tensor& source,
                                       const Tensor& source_keypoints, const Tensor& source_affines,
                                       const Tensor& target_keypoints, const Tensor& target_affines,
                                       const Tensor& part_logits, const std::optional<Tensor>& source_part_logits,
                                       int64_t height, int64_t width, int64_t needs) {
  const WarpInputs inputs{source,         source_keypoints, source_affines,    target_keypoints,
                          target_affines, part_logits,      source_part_logits};
  WarpCall call = warp_call(inputs, height, width);
  take_warped_gradients(call, inputs, grad_warped, grad_flow, grad_visibility);
  WarpGradients gradients = allocate_warp_gradients(call, inputs, needs);
  if (call.compute == ScalarType::Double) {
    over_images<double>(call, 1, backward_double);
  } else {
    over_images<float>(call, 1, backward_float);
  }
  return gradients;
}

}  // namespace motarfuse
