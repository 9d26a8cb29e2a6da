// A block of motion_warp's backward: what it knows of its cells, and the gradients of part logits and postures. The
// source's gradient is in motion_warp_gather.cuh.
//
// Where items are many, a block does all of an item. Otherwise an item has blocks of two kinds: gathering ones make the
// source's gradient, each of some channels and cells, and posture ones the others, each of a tile of cells. Neither
// needs anything of the other, so that one launch has both. An item of several tiles leaves sums, which a second launch
// adds.
#pragma once

#include "motion_warp.cuh"

#include <algorithm>

namespace motarfuse {

constexpr int kMostThreads = 256;
constexpr int kMotionSums = 6;
// Packets of a lane that gathers.
template <int kCount>
constexpr int kPacketsAtOnce = kCount == 1 ? 1 : 3;

// How a call is shared out, and where in a block's shared memory what lies behind motions and postures.
struct BackwardPlan {
  bool whole = false, moves = false;  // a block does all of an item; gradients that need the flow's are wanted
  int threads = 0;
  int gathers = 0, chunks = 0;  // gathering blocks of an item, chunks of packets of each
  int ranges = 1, range = 0;    // which these share source cells out in, cells of each
  int tile = 0, tiles = 0;      // cells of a posture block, posture blocks of an item
  RowLanes gathered, dotted;
  void* partial = nullptr;  // (B, tiles, K, 6) sums in the type computed in
  uint32_t weights = 0, keys = 0, ranks = 0, order = 0, starts = 0, totals = 0, products = 0;
  uint32_t sums = 0, displacements = 0, gradients = 0, softmaxes = 0, corners = 0, bytes = 0;

  MOTARFUSE_HOST_DEVICE int all_chunks() const {
    const int packets = (gathered.packed ? kPacketsAtOnce<2> : kPacketsAtOnce<1>) * gathered.lanes();
    return (gathered.packets + packets - 1) / packets;
  }
  int blocks() const { return whole ? 1 : gathers + tiles; }

  // Gathering: 2 numbers a cell and four 16-bit words. Postures: 8 numbers and a word for a cell, 6 numbers a part, in
  // the same place unless a block does both; then there are 4 numbers a cell besides.
  template <class C>
  void place(int parts, int cells) {
    const uint32_t number = sizeof(C);
    uint32_t next = motion_bytes<C>(parts);
    const auto take = [&](uint32_t size) {
      const uint32_t taken = next;
      next = align_shared(next + size);
      return taken;
    };
    const bool gathering = gathers > 0, postures = tiles > 0;
    weights = take(2 * number * (gathering ? std::max(cells, tile) : tile));
    const uint32_t shared = next;
    if (gathering) {
      keys = take(2 * cells);
      ranks = take(2 * cells);
      order = take(2 * cells);
      starts = take(2 * (cells + 1));
      totals = take(4 * kMostThreads / kWarpLanes);
    }
    const uint32_t gathered_bytes = next;
    if (whole) {
      products = take(4 * number * cells);
    } else {
      next = shared;
    }
    if (postures) {
      sums = take(kMotionSums * number * parts);
      displacements = take(2 * number * tile);
      gradients = take(2 * number * tile);
      softmaxes = take(2 * number * tile);
      corners = take(4 * tile);
    }
    bytes = std::max(next, gathered_bytes);
  }
};

__device__ __forceinline__ int read_word(uint32_t first, int index) {
  return read_shared<uint16_t>(first + 2 * static_cast<uint32_t>(index));
}

__device__ __forceinline__ void write_word(uint32_t first, int index, int value) {
  write_shared(first + 2 * static_cast<uint32_t>(index), static_cast<uint16_t>(value));
}

// Two numbers summed over 2, 4, .. 32 lanes at the price of little more than one: the first in the group's first lane,
// the second in the first one of its second half.
template <class C>
__device__ __forceinline__ C sum_pair(C first, C second, int lanes, int lane) {
  const bool upper = (lane & (lanes / 2)) != 0;
  const C mine = upper ? second : first, given = upper ? first : second;
  C sum = mine + __shfl_xor_sync(kWholeWarp, given, lanes / 2);
  if (lanes == kWarpLanes) {
#pragma unroll
    for (int distance = kWarpLanes / 4; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kWholeWarp, sum, distance);
    }
  } else {
    for (int distance = lanes / 4; distance > 0; distance /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, distance);
  }
  return sum;
}

template <class T>
struct BackwardBlock {
  using C = Compute<T>;

  const WarpCall& call;
  const BackwardPlan& plan;
  int64_t batch;
  int tile, first, cells, parts, height, width, lane, warp, warps;  // cells from `first` on

  __device__ __forceinline__ BackwardBlock(const WarpCall& call, const BackwardPlan& plan, int64_t batch, int tile,
                                           int tile_cells)
      : call(call),
        plan(plan),
        batch(batch),
        tile(tile),
        first(tile * tile_cells),
        cells(min(tile_cells, static_cast<int>(call.num_cells()) - first)),
        parts(static_cast<int>(call.parts)),
        height(static_cast<int>(call.height)),
        width(static_cast<int>(call.width)),
        lane(threadIdx.x % kWarpLanes),
        warp(threadIdx.x / kWarpLanes),
        warps(blockDim.x / kWarpLanes) {}

  __device__ __forceinline__ void find_cells(bool gathers, bool postures) {
    CellWalk<C> walk(first + threadIdx.x, blockDim.x, height, width);
#pragma unroll 1
    for (int i = threadIdx.x; i < cells; i += blockDim.x, walk.next()) {
      const int cell = first + i;
      CellMotion<C> motion;
      with_logits<C>(call.logits.type, [&](auto l) {
        motion = move_cell<decltype(l)>(call.logits, cell_offset(call.logits, batch, cell), parts, walk.x(), walk.y());
      });
      const C x = motion.displacement.x, y = motion.displacement.y;
      const BilinearSample<C> sample(walk.row, walk.column, x, y, height, width);
      write_entry(plan.weights, i, Vector2<C>{sample.x.weight, sample.y.weight});
      if (gathers) {
        write_word(plan.keys, i, sample.upper_left(width));
        write_word(plan.starts, i, 0);
      }
      if (!postures) continue;
      Vector2<C> grad{C(0), C(0)};
      if (call.flow.data != nullptr) {
        const int64_t offset = batch * call.flow.batch + cell * call.flow.cell;
        grad.x = read_as<C>(call.flow.data, call.flow.type, offset);
        grad.y = read_as<C>(call.flow.data, call.flow.type, offset + call.flow.channel);
      }
      write_entry(plan.displacements, i, motion.displacement);
      write_entry(plan.gradients, i, grad);
      write_entry(plan.softmaxes, i, Vector2<C>{motion.softmax.origin, motion.softmax.inverse_sum});
      write_entry(plan.corners, i, corner_word(sample, width));
      if (call.grad_source_logits.data != nullptr) {
        with_logits<C>(call.source_logits.type, [&](auto l) { hide_cell<decltype(l)>(cell, motion.background); });
      }
    }
  }

  // The gradient of a cell's logits in the source, which only the visibility depends on.
  template <class L>
  __device__ __forceinline__ void hide_cell(int cell, C target_background) {
    BackgroundSums<C> sums;
    const int64_t offset = cell_offset(call.source_logits, batch, cell);
    const CellSoftmax<C> softmax = pass_channels<L, C>(call.source_logits, offset, parts, sums);
    const C background = sums.background * softmax.inverse_sum;
    C grad = C(0);
    if (call.visibility.data != nullptr) {
      grad = read_as<C>(call.visibility.data, call.visibility.type, cell_offset(call.visibility, batch, cell));
    }
    grad *= target_background;
    const L* const logits = static_cast<const L*>(call.source_logits.data) + offset;
    L* const target = static_cast<L*>(call.grad_source_logits.data) + cell_offset(call.grad_source_logits, batch, cell);
#pragma unroll 4
    for (int j = 0; j <= parts; ++j) {
      const C mask = softmax.mask(static_cast<C>(logits[j * call.source_logits.part]));
      target[j * call.grad_source_logits.part] = static_cast<L>(mask * ((j == 0 ? C(1) : C(0)) - background) * grad);
    }
  }

  // Half a grid's size, in the direction that a lane of sum_pair has.
  __device__ __forceinline__ C half_size(bool vertical) const {
    return static_cast<C>(vertical ? height : width) / C(2);
  }

  // Adds the sampling's gradient of the flow, by lanes over channels. With
  //   p = upper right - upper left,  q = lower right - lower left,  r = lower left - upper left
  // a channel's derivatives are p (1 - wy) + q wy by x and r (1 - wx) + (r + q - p) wx = r + (q - p) wx by y.
  template <int kCount>
  __device__ __forceinline__ void add_dots() {
    const RowLanes& row = plan.dotted;
    const int lanes = row.lanes(), in_group = lane & (lanes - 1);
    const int group = threadIdx.x >> row.shift, groups = blockDim.x >> row.shift;
    const ItemRows<T, kCount> source = ItemRows<T, kCount>(call.source, batch).found_once();
    const ItemRows<T, kCount> grads = ItemRows<T, kCount>(call.warped, batch).found_once();
#pragma unroll 1
    for (int start = 0; start < cells; start += groups) {
      // Whole warps go on together: they shuffle.
      const int i = min(start + group, cells - 1);
      const uint32_t corner = read_entry<uint32_t>(plan.corners, i);
      const Vector2<C> weight = read_entry<Vector2<C>>(plan.weights, i);
      CornerOffsets<kCount> corners(source, corner, width);
      Offset<kCount> of_grad = (first + i) * grads.cell + in_group * grads.packet, of_source = in_group * source.packet;
      C p = C(0), q = C(0), r = C(0);
#pragma unroll 2
      for (int packet = in_group; packet < row.packets; packet += lanes) {
        Packet<T, kCount> packets[5];
        packets[0].read(source.at(corners.upper_left + of_source));
        packets[1].read(source.at(corners.upper_right + of_source));
        packets[2].read(source.at(corners.lower_left + of_source));
        packets[3].read(source.at(corners.lower_right + of_source));
        packets[4].read(grads.at(of_grad));
        of_source += lanes * source.packet;
        of_grad += lanes * grads.packet;
        C values[5][kCount];
#pragma unroll
        for (int c = 0; c < 5; ++c) packets[c].numbers(values[c]);
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
          p += values[4][c] * (values[1][c] - values[0][c]);
          q += values[4][c] * (values[3][c] - values[2][c]);
          r += values[4][c] * (values[2][c] - values[0][c]);
        }
      }
      const C sum = sum_pair(p * (C(1) - weight.y) + q * weight.y, r + weight.x * (q - p), lanes, lane);
      if ((in_group & (lanes / 2 - 1)) != 0 || start + group >= cells) continue;
      const bool vertical = in_group != 0;
      if ((corner & (vertical ? kMovesY : kMovesX)) == 0) continue;
      const int entry = 2 * i + (vertical ? 1 : 0);
      write_entry(plan.gradients, entry, read_entry<C>(plan.gradients, entry) + half_size(vertical) * sum);
    }
  }

  // The same of products that gathering has left: the incoming gradient times each of the four cells.
  __device__ __forceinline__ void add_products() {
    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
      const uint32_t corner = read_entry<uint32_t>(plan.corners, i);
      const bool right = (corner & kHasRight) != 0, lower = (corner & kHasLower) != 0;
      const auto product = [&](int which) { return read_entry<C>(plan.products, 4 * i + which); };
      const C upper_left = product(0), lower_left = lower ? product(2) : upper_left;
      const C p = right ? product(1) - upper_left : C(0);
      const C q = !right ? C(0) : lower ? product(3) - lower_left : p;
      const C r = lower_left - upper_left;
      const Vector2<C> weight = read_entry<Vector2<C>>(plan.weights, i);
      Vector2<C> grad = read_entry<Vector2<C>>(plan.gradients, i);
      if ((corner & kMovesX) != 0) grad.x += half_size(false) * (p * (C(1) - weight.y) + q * weight.y);
      if ((corner & kMovesY) != 0) grad.y += half_size(true) * (r + weight.x * (q - p));
      write_entry(plan.gradients, i, grad);
    }
  }

  // Gradients of logits and postures from the flow's.
  __device__ __forceinline__ void finish_postures() {
    with_logits<C>(call.logits.type, [&](auto l) { reduce_channels<decltype(l)>(); });
    if (!call.wants_postures()) return;
    __syncthreads();
    for (int part = threadIdx.x; part < parts; part += blockDim.x) finish_part(part);
  }

  // A channel a warp: its logits' gradients and, of a part, the sums that its posture's gradients are made of.
  template <class L>
  __device__ __forceinline__ void reduce_channels() {
    const bool wants_logits = call.grad_logits.data != nullptr, wants_postures = call.wants_postures();
#pragma unroll 1
    for (int channel = warp + (wants_logits ? 0 : 1); channel <= parts; channel += warps) {
      PartMotion<C> motion{};
      if (channel > 0) motion = read_motion<C>(channel - 1);
      const L* const logits = static_cast<const L*>(call.logits.data) + batch * call.logits.batch +
                              channel * call.logits.part + first * call.logits.cell;
      L* const target = static_cast<L*>(call.grad_logits.data) + batch * call.grad_logits.batch +
                        channel * call.grad_logits.part + first * call.grad_logits.cell;
      MotionSums<C> sums;
      sums.clear();
      CellWalk<C> walk(first + lane, kWarpLanes, height, width);
#pragma unroll 2
      for (int i = lane; i < cells; i += kWarpLanes, walk.next()) {
        const C x = walk.x(), y = walk.y();
        const Vector2<C> softmax = read_entry<Vector2<C>>(plan.softmaxes, i);
        const Vector2<C> grad = read_entry<Vector2<C>>(plan.gradients, i);
        const C mask = CellSoftmax<C>{softmax.x, C(0), softmax.y}.mask(static_cast<C>(logits[i * call.logits.cell]));
        if (wants_logits) {
          const Vector2<C> mean = read_entry<Vector2<C>>(plan.displacements, i);
          const C away = grad.x * (motion.displacement_x(x, y) - mean.x) +
                         grad.y * (motion.displacement_y(x, y) - mean.y);
          target[i * call.grad_logits.cell] = static_cast<L>(mask * away);
        }
        sums.add(mask, grad.x, grad.y, x - motion.target_x, y - motion.target_y);
      }
      if (channel > 0 && wants_postures) leave_sums(channel - 1, sums);
    }
  }

  __device__ __forceinline__ void leave_sums(int part, const MotionSums<C>& sums) {
    const C* const h = sums.by_offset;
    const C totals[kMotionSums / 2] = {sum_pair(sums.x, sums.y, kWarpLanes, lane),
                                       sum_pair(h[0], h[1], kWarpLanes, lane), sum_pair(h[2], h[3], kWarpLanes, lane)};
    if (lane % (kWarpLanes / 2) != 0) return;
#pragma unroll
    for (int i = 0; i < kMotionSums / 2; ++i) {
      write_entry(plan.sums, part * kMotionSums + 2 * i + lane / (kWarpLanes / 2), totals[i]);
    }
  }

  __device__ __forceinline__ void finish_part(int part) {
    C numbers[kMotionSums];
#pragma unroll
    for (int i = 0; i < kMotionSums; ++i) numbers[i] = read_entry<C>(plan.sums, part * kMotionSums + i);
    if (plan.partial == nullptr) {
      const MotionSums<C> sums{numbers[0], numbers[1], {numbers[2], numbers[3], numbers[4], numbers[5]}};
      write_postures(call.grad_postures, batch, part,
                     posture_gradient(read_shared_postures<C>(parts, part), read_motion<C>(part), sums));
      return;
    }
    C* const partial =
        static_cast<C*>(plan.partial) + ((batch * plan.tiles + tile) * call.parts + part) * int64_t{kMotionSums};
#pragma unroll
    for (int i = 0; i < kMotionSums; ++i) partial[i] = numbers[i];
  }
};

}  // namespace motarfuse
