// part_pool on the CPU: blocks of cells whose masks stay in the innermost cache, and three small matrix products over
// them. A token is read once in each direction; no mask is stored.
//
// Sums over cells are kept for groups of cells, which are the same for any number of threads, and added in their order.
#include "../part_pool.h"

#include <cstring>
#include <utility>

#include "../library.h"
#include "../parallel.h"
#include "../part_pool_call.h"
#include "part_pool_rows.h"
#include "simd.h"

#if defined(__clang__)
#define MOTARFUSE_UNROLL _Pragma("unroll")
#else
#define MOTARFUSE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace motarfuse {
namespace {

constexpr int64_t kBlockCells = 64;   // of masks in the cache
constexpr int64_t kRowsAtOnce = 8;    // cells that are summed in registers, or converted
constexpr int kCellsAtOnce = 4;       // whose gradients are in registers
constexpr int64_t kRowsAhead = 8;     // of the one that is read, asked for
// Gradients of tokens that no cache keeps until somebody reads them: they go to memory without being fetched first, a
// fifth of the backward's time.
constexpr int64_t kStreamedBytes = 4 << 20;
constexpr int64_t kLanesAtMost = 16;  // of a vector of any instruction set
constexpr int64_t kPartsAtOnce = 4;   // parts are rounded up to it, with masks and gradients of zero

// The loops of one instruction set (part_pool_blocks.h). Rows of masks and products are kBlockCells apart, rows of sums
// and weights `width`, the channels rounded up to whole vectors.
template <class C>
struct PoolBlocks {
  int lanes;
  void (*softmax)(int64_t parts, int64_t cells, C* rows);
  void (*add_masses)(const C* masks, int64_t parts, int64_t cells, C* masses);
  void (*add_rows)(const C* masks, int64_t parts, const C* rows, int64_t stride, int64_t cells, C* sums, int64_t width);
  void (*multiply_rows)(const C* weights, int64_t parts, const C* rows, int64_t stride, int64_t cells, int64_t width,
                        C* products);
  void (*combine_rows)(const C* masks, const C* weights, int64_t parts, int64_t cells, int64_t width, C* rows,
                       int64_t stride, bool streams);
  void (*softmax_gradients)(const C* constants, int64_t parts, int64_t cells, C* products, C* masks);
  C (*scale_and_multiply)(C* row, const C* other, int64_t channels, C factor);
  void (*move_sums)(int64_t count, C* sums, C* total);
  void (*scale)(const C* source, int64_t count, C factor, C* target);
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_BLOCKS blocks_baseline
#define MOTARFUSE_TARGET
#define MOTARFUSE_BYTES 16
#if defined(__x86_64__)
#define MOTARFUSE_STREAM __builtin_ia32_movntps
#endif
#define MOTARFUSE_TILE_PARTS 4
#include "part_pool_blocks.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MOTARFUSE_BLOCKS blocks_avx2
#define MOTARFUSE_TARGET __attribute__((target("avx2,fma")))
#define MOTARFUSE_BYTES 32
#define MOTARFUSE_STREAM __builtin_ia32_movntps256
#define MOTARFUSE_TILE_PARTS 4
#include "part_pool_blocks.h"

#define MOTARFUSE_BLOCKS blocks_avx512
#define MOTARFUSE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define MOTARFUSE_BYTES 64
#define MOTARFUSE_STREAM __builtin_ia32_movntps512
#define MOTARFUSE_TILE_PARTS 8
#include "part_pool_blocks.h"
#endif

namespace motarfuse {
namespace {

template <class C>
const PoolBlocks<C>& best_blocks() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const PoolBlocks<C>& best = has_avx512() ? blocks_avx512::kBlocks<C>
                                     : has_avx2() ? blocks_avx2::kBlocks<C>
                                                  : blocks_baseline::kBlocks<C>;
  return best;
#else
  return blocks_baseline::kBlocks<C>;
#endif
}

// What a thread has written past the caches is in memory before another reads it.
void finish_streams() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_sfence();
#endif
}

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// What a call's sizes say for all threads.
template <class C>
struct PoolSizes {
  const PoolCall& call;
  const PoolBlocks<C>& blocks;
  int64_t width;        // channels, rounded up to whole vectors
  int64_t parts;        // rounded up
  int64_t group_cells;  // of a sum of its own
  int64_t groups;

  explicit PoolSizes(const PoolCall& call)
      : call(call),
        blocks(best_blocks<C>()),
        width(round_up(call.channels, blocks.lanes)),
        parts(round_up(call.parts, kPartsAtOnce)),
        group_cells(call.cells <= 8 * kBlockCells ? kBlockCells : 4 * kBlockCells),
        groups((call.cells + group_cells - 1) / group_cells) {}

  // Numbers of a group's sums: the parts' tokens, then their masses.
  int64_t sums() const { return parts * width + round_up(parts, kLanesAtMost); }

  // Of a block, in cells of an operator that does little for each.
  int64_t work() const { return kBlockCells * (call.parts * call.channels / 64 + call.parts + 1); }

  // Rows that vectors can read and write where they lie.
  bool in_place(const TokensView& view) const {
    return view.channel == 1 && view.type == call.compute && width == call.channels;
  }

  // Cells that are converted at once: few, or where channels lie far apart so many that whole lines are read.
  int64_t staged_cells(const TokensView& view) const {
    return view.channel == 1 || view.cell != 1 ? kRowsAtOnce : kBlockCells;
  }

  // Of a buffer for them.
  int64_t staged(const TokensView& view) const { return in_place(view) ? 0 : staged_cells(view) * width; }

  // Rows that are written past the caches, whole lines.
  bool streams(const TokensView& view) const {
    constexpr int64_t kLine = 64, kSize = sizeof(C);
    return in_place(view) && call.batch * call.cells * call.channels * kSize >= kStreamedBytes &&
           reinterpret_cast<uintptr_t>(view.data) % kLine == 0 && view.batch * kSize % kLine == 0 &&
           view.cell * kSize % kLine == 0;
  }
};

// Asks for the logits of the block after this one: short pieces of rows far apart, which a processor does not foresee.
template <class C>
void prefetch_logits(const PoolSizes<C>& sizes, int64_t batch, int64_t first) {
  const LogitsView& view = sizes.call.logits;
  if (view.cell != 1) return;
  const bool last = first + kBlockCells >= sizes.call.cells;
  const int64_t begin = last ? (batch + 1) * view.batch : batch * view.batch + first + kBlockCells;
  with_type<C>(view.data, view.type, begin, [&](const auto* next) {
    for (int64_t k = 0; k <= sizes.call.parts; ++k) {
      for (int64_t i = 0; i < kBlockCells; i += 64 / sizeof(*next)) __builtin_prefetch(next + k * view.part + i);
    }
  });
}

// The masks of up to kBlockCells cells, a row a channel. Cells up to the next whole vector get masks of zero.
template <class C>
void load_masks(const PoolSizes<C>& sizes, int64_t batch, int64_t first, int64_t cells, C* masks) {
  const LogitsView& view = sizes.call.logits;
  const int64_t padded = round_up(cells, kLanesAtMost), parts = sizes.call.parts;
  for (int64_t k = 0; k <= parts; ++k) {
    C* row = masks + k * kBlockCells;
    load_line(view.data, view.type, batch * view.batch + k * view.part + first * view.cell, view.cell, cells, row);
    std::fill(row + cells, row + padded, C(0));
  }
  prefetch_logits(sizes, batch, first);
  sizes.blocks.softmax(parts, padded, masks);
  for (int64_t k = 0; k <= parts; ++k) {
    C* row = masks + k * kBlockCells;
    std::fill(row + cells, row + padded, C(0));
  }
}

// The forward's scratch of a thread.
template <class C>
class PoolForward {
 public:
  explicit PoolForward(const PoolSizes<C>& sizes)
      : sizes_(sizes),
        masks_((sizes.parts + 1) * kBlockCells),
        staged_(sizes.staged(sizes.call.tokens)) {}

  // Adds a group of cells to sums.
  void add_group(int64_t batch, int64_t group, C* sums) {
    const int64_t end = std::min(sizes_.call.cells, (group + 1) * sizes_.group_cells);
    for (int64_t first = group * sizes_.group_cells; first < end; first += kBlockCells) {
      add_block(batch, first, std::min(kBlockCells, end - first), sums);
    }
  }

  // Writes the results of an item.
  void finish(int64_t batch, C* sums) {
    const PoolCall& call = sizes_.call;
    for (int64_t k = 0; k < call.parts; ++k) {
      const int64_t index = batch * call.parts + k, row = index * call.channels;
      const C total = sums[sizes_.parts * sizes_.width + k];
      const bool in_place = call.rows.pooled_type == call.compute;
      void* const kept = in_place ? call.rows.pooled : call.exact;
      C* const pooled = kept == nullptr ? sums + k * sizes_.width : static_cast<C*>(kept) + row;
      sizes_.blocks.scale(sums + k * sizes_.width, call.channels, 1 / pool_divisor(total), pooled);
      if (!in_place) store_line<C>(call.rows.pooled, call.rows.pooled_type, row, 1, call.channels, pooled);
      write_as(call.rows.mass, call.rows.mass_type, index, pool_mass(total, call.cells));
      if (call.total != nullptr) static_cast<C*>(call.total)[index] = total;
    }
  }

 private:
  void add_block(int64_t batch, int64_t first, int64_t cells, C* sums) {
    const TokensView& view = sizes_.call.tokens;
    const int64_t parts = sizes_.parts, width = sizes_.width;
    load_masks(sizes_, batch, first, cells, masks_.data());
    const C* masks = masks_.data() + kBlockCells;
    sizes_.blocks.add_masses(masks, sizes_.call.parts, round_up(cells, kLanesAtMost), sums + parts * width);
    if (sizes_.in_place(view)) {
      const C* rows = offset<C>(view.data, batch * view.batch + first * view.cell);
      sizes_.blocks.add_rows(masks, parts, rows, view.cell, cells, sums, width);
      return;
    }
    const int64_t step = sizes_.staged_cells(view);
    for (int64_t n = 0; n < cells; n += step) {
      const int64_t count = std::min(step, cells - n);
      load_rows(view, batch, first + n, count, sizes_.call.channels, width, staged_.data());
      sizes_.blocks.add_rows(masks + n, parts, staged_.data(), width, count, sums, width);
    }
  }

  const PoolSizes<C>& sizes_;
  Buffer<C> masks_, staged_;
};

template <class C>
void forward_items(const PoolSizes<C>& sizes) {
  parallel_rows(sizes.call.batch, sizes.call.cells * sizes.work() / kBlockCells, [&](int64_t begin, int64_t end) {
    PoolForward<C> forward(sizes);
    Buffer<C> sums(sizes.sums()), total(sizes.sums());
    for (int64_t batch = begin; batch < end; ++batch) {
      std::fill(total.data(), total.data() + sizes.sums(), C(0));
      for (int64_t group = 0; group < sizes.groups; ++group) {
        forward.add_group(batch, group, sums.data());
        sizes.blocks.move_sums(sizes.sums(), sums.data(), total.data());
      }
      forward.finish(batch, total.data());
    }
  });
}

// Few items: threads share the groups of each, whose sums wait in memory for all of them.
template <class C>
void forward_groups(const PoolSizes<C>& sizes) {
  const int64_t count = sizes.sums(), groups = sizes.groups;
  Buffer<C> sums(sizes.call.batch * groups * count);
  parallel_rows(sizes.call.batch * groups, sizes.group_cells * sizes.work() / kBlockCells,
                [&](int64_t begin, int64_t end) {
                  PoolForward<C> forward(sizes);
                  for (int64_t i = begin; i < end; ++i) {
                    forward.add_group(i / groups, i % groups, sums.data() + i * count);
                  }
                });
  PoolForward<C> forward(sizes);
  Buffer<C> total(count);
  for (int64_t batch = 0; batch < sizes.call.batch; ++batch) {
    std::fill(total.data(), total.data() + count, C(0));
    for (int64_t group = 0; group < groups; ++group) {
      sizes.blocks.move_sums(count, sums.data() + (batch * groups + group) * count, total.data());
    }
    forward.finish(batch, total.data());
  }
}

template <class C>
void forward(const PoolCall& call) {
  const PoolSizes<C> sizes(call);
  const int64_t threads = torch::stable::get_num_threads();
  if (threads > 1 && sizes.groups > 1 && call.batch < 2 * threads) {
    forward_groups(sizes);
  } else {
    forward_items(sizes);
  }
}

// The backward's scratch of a thread.
template <class C>
class PoolBackward {
 public:
  explicit PoolBackward(const PoolSizes<C>& sizes)
      : sizes_(sizes),
        masks_((sizes.parts + 1) * kBlockCells),
        products_(sizes.parts * kBlockCells),
        weights_(sizes.parts * sizes.width),
        constants_(sizes.parts),
        staged_(sizes.staged(sizes.call.tokens)),
        staged_grads_(sizes.staged(sizes.call.grad_tokens)),
        streams_(sizes.streams(sizes.call.grad_tokens)) {}

  // dpooled / D and the constant of every part of an item.
  void begin_item(int64_t batch) {
    const PoolCall& call = sizes_.call;
    for (int64_t k = 0; k < call.parts; ++k) {
      const int64_t index = batch * call.parts + k, row = index * call.channels;
      const C total = static_cast<const C*>(call.total)[index];
      C* const weights = weights_.data() + k * sizes_.width;
      C product = 0;
      if (call.rows.pooled != nullptr) {
        load_line(call.rows.pooled, call.rows.pooled_type, row, 1, call.channels, weights);
        product = sizes_.blocks.scale_and_multiply(weights, static_cast<const C*>(call.exact) + row, call.channels,
                                                   1 / pool_divisor(total));
      }
      const C grad_mass = call.rows.mass == nullptr ? C(0) : read_as<C>(call.rows.mass, call.rows.mass_type, index);
      constants_.data()[k] = pool_constant(product, total, grad_mass, call.cells);
    }
  }

  void block(int64_t batch, int64_t first, int64_t cells) {
    const PoolCall& call = sizes_.call;
    const int64_t padded = round_up(cells, kLanesAtMost);
    load_masks(sizes_, batch, first, cells, masks_.data());
    const bool multiplies = call.grad_logits.data != nullptr && call.rows.pooled != nullptr;
    if (!multiplies) std::fill(products_.data(), products_.data() + sizes_.parts * kBlockCells, C(0));
    // Reading and writing take turns: memory is kept busy with both.
    const int64_t step = std::min(sizes_.staged_cells(call.tokens), sizes_.staged_cells(call.grad_tokens));
    for (int64_t n = 0; n < cells; n += step) {
      const int64_t count = std::min(step, cells - n);
      if (multiplies) multiply(batch, first + n, count, products_.data() + n);
      if (call.grad_tokens.data != nullptr) combine(batch, first + n, count, masks_.data() + kBlockCells + n);
    }
    if (call.grad_logits.data == nullptr) return;
    sizes_.blocks.softmax_gradients(constants_.data(), call.parts, padded, products_.data(), masks_.data());
    const LogitsView& view = call.grad_logits;
    for (int64_t k = 0; k <= call.parts; ++k) {
      store_line(view.data, view.type, batch * view.batch + k * view.part + first * view.cell, view.cell, cells,
                 masks_.data() + k * kBlockCells);
    }
  }

 private:
  void multiply(int64_t batch, int64_t first, int64_t cells, C* products) {
    const TokensView& view = sizes_.call.tokens;
    const C* rows = staged_.data();
    int64_t stride = sizes_.width;
    if (sizes_.in_place(view)) {
      rows = offset<C>(view.data, batch * view.batch + first * view.cell);
      stride = view.cell;
    } else {
      load_rows(view, batch, first, cells, sizes_.call.channels, sizes_.width, staged_.data());
    }
    sizes_.blocks.multiply_rows(weights_.data(), sizes_.call.parts, rows, stride, cells, sizes_.width, products);
  }

  void combine(int64_t batch, int64_t first, int64_t cells, const C* masks) {
    const TokensView& view = sizes_.call.grad_tokens;
    const bool in_place = sizes_.in_place(view);
    C* const rows = in_place ? offset<C>(view.data, batch * view.batch + first * view.cell) : staged_grads_.data();
    const int64_t stride = in_place ? view.cell : sizes_.width;
    sizes_.blocks.combine_rows(masks, weights_.data(), sizes_.call.parts, cells, sizes_.width, rows, stride, streams_);
    if (!in_place) store_rows(view, batch, first, cells, sizes_.call.channels, sizes_.width, rows);
  }

  const PoolSizes<C>& sizes_;
  // Rows that are read keep zeros after their channels; those that are written may get NaN there.
  Buffer<C> masks_, products_, weights_, constants_, staged_, staged_grads_;
  const bool streams_;
};

template <class C>
void backward(const PoolCall& call) {
  const PoolSizes<C> sizes(call);
  const int64_t blocks = (call.cells + kBlockCells - 1) / kBlockCells;
  parallel_rows(call.batch * blocks, 2 * sizes.work(), [&](int64_t begin, int64_t end) {
    PoolBackward<C> backward(sizes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / blocks, first = i % blocks * kBlockCells;
      if (i == begin || first == 0) backward.begin_item(batch);
      backward.block(batch, first, std::min(kBlockCells, call.cells - first));
    }
    finish_streams();
  });
}

}  // namespace

PoolResults part_pool_forward_cpu(const Tensor& tokens, const Tensor& part_logits, bool save_statistics) {
  PoolCall call = pool_call(tokens, part_logits);
  PoolResults results = allocate_pooled(call, tokens, save_statistics);
  call.compute == ScalarType::Double ? forward<double>(call) : forward<float>(call);
  return results;
}

PoolGradients part_pool_backward_cpu(const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_mass,
                                     const Tensor& tokens, const Tensor& part_logits, const Tensor& pooled,
                                     const Tensor& total, bool needs_tokens, bool needs_logits) {
  PoolCall call = pool_call(tokens, part_logits);
  take_pooled_gradients(call, tokens, grad_pooled, grad_mass, pooled, total);
  PoolGradients gradients = allocate_pool_gradients(call, tokens, part_logits, needs_tokens, needs_logits);
  call.compute == ScalarType::Double ? backward<double>(call) : backward<float>(call);
  return gradients;
}

}  // namespace motarfuse
