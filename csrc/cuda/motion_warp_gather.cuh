// The source's gradient in motion_warp's backward: every source cell gathers from the target's cells that read it, so
// that sums stay in registers and nothing is added in memory.
//
// The target's cells are sorted by the cell that is the upper left of the four they are sampled from. Then source cell
// m of a grid of width w is read by the cells sorted
//   to m as upper left, to m - 1 as upper right, to m - w as lower left, to m - w - 1 as lower right,
// and those of m - 1 and m lie side by side in the list. Where a sample has no right or lower cell, its share is 0
// exactly, or NaN, which the left and upper ones are then too.
//
// Lanes share a row of channels, a few packets each. What they need to know of the readers is found by as many lanes at
// once, and shuffled. A block that does all of an item multiplies each reader's gradient with the source cell as well:
// the products that the flow's gradient is made of, without reading either of them once more.
#pragma once

#include "motion_warp_backward.cuh"

namespace motarfuse {

template <class T>
struct GatheringBlock : BackwardBlock<T> {
  using Base = BackwardBlock<T>;
  using typename Base::C;
  using Base::batch, Base::call, Base::cells, Base::height, Base::lane, Base::plan, Base::warp, Base::warps,
      Base::width;

  __device__ __forceinline__ GatheringBlock(const WarpCall& call, const BackwardPlan& plan, int64_t batch)
      : Base(call, plan, batch, 0, static_cast<int>(call.num_cells())) {}

  // Fills the list. Begins and ends with all threads together.
  __device__ __forceinline__ void sort_cells() {
    __syncthreads();
    rank_cells();
    __syncthreads();
    sum_counts();
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
      const int place = read_word(plan.starts, read_word(plan.keys, cell)) + read_word(plan.ranks, cell);
      write_word(plan.order, place, cell);
    }
    __syncthreads();
  }

  // Counts the cells of each key, and which of them a cell is. A warp has its own keys, and looks at all cells for
  // them.
  __device__ __forceinline__ void rank_cells() {
    const int keys = (cells + warps - 1) / warps, first = warp * keys;
    const unsigned before = (1u << lane) - 1u;
#pragma unroll 1
    for (int start = 0; start < cells; start += kWarpLanes) {
      const int cell = start + lane;
      const int key = cell < cells ? read_word(plan.keys, cell) : -1;
      const bool mine = key >= first && key < first + keys;
      if (!__any_sync(kWholeWarp, mine)) continue;
      const unsigned same = __match_any_sync(kWholeWarp, key);
      const int rank = __popc(same & before);
      int count = 0;
      if (mine) {
        count = read_word(plan.starts, key);
        write_word(plan.ranks, cell, count + rank);
      }
      __syncwarp();
      if (mine && rank + 1 == __popc(same)) write_word(plan.starts, key, count + rank + 1);
      __syncwarp();
    }
  }

  // Counts become the places in the list at which keys start.
  __device__ __forceinline__ void sum_counts() {
    const int keys = (cells + blockDim.x - 1) / blockDim.x;
    const int first = min(cells, static_cast<int>(threadIdx.x) * keys), end = min(cells, first + keys);
    int count = 0;
    for (int key = first; key < end; ++key) count += read_word(plan.starts, key);
    int sum = count;
#pragma unroll
    for (int distance = 1; distance < kWarpLanes; distance *= 2) {
      const int other = __shfl_sync(kWholeWarp, sum, (lane + kWarpLanes - distance) % kWarpLanes);
      if (lane >= distance) sum += other;
    }
    if (lane == kWarpLanes - 1) write_entry(plan.totals, warp, sum);
    __syncthreads();
    int place = sum - count;
    for (int other = 0; other < warp; ++other) place += read_entry<int>(plan.totals, other);
    for (int key = first; key < end; ++key) {
      const int of_key = read_word(plan.starts, key);
      write_word(plan.starts, key, place);
      place += of_key;
    }
    if (threadIdx.x == 0) write_word(plan.starts, cells, cells);
  }

  // Places in the list of those that read a cell as one of their upper two, or of their lower two: from `first` on as
  // their right one, from `middle` on as their left one.
  struct Readers {
    int first, middle, count;
  };

  __device__ __forceinline__ Readers readers_of(int cell, bool has_left, bool exists) const {
    const int known = exists ? cell : 0, middle = read_word(plan.starts, known);
    const int first = read_word(plan.starts, exists && has_left ? known - 1 : known);
    return {first, middle, exists ? read_word(plan.starts, known + 1) - first : 0};
  }

  // A reader: its cell, which of its four the source cell is (two bits above), and that one's share.
  struct Reader {
    uint32_t word;
    C share;
  };
  static constexpr int kWhichShift = 16;

  static __device__ __forceinline__ int cell_of(uint32_t word) {
    return static_cast<int>(word & ((1u << kWhichShift) - 1));
  }

  __device__ __forceinline__ Reader find_reader(int index, const Readers& upper, const Readers& lower) const {
    if (index >= upper.count + lower.count) return {0, C(0)};
    const bool by_upper = index < upper.count;
    const int place = by_upper ? upper.first + index : lower.first + (index - upper.count);
    const int cell = read_word(plan.order, place);
    const Vector2<C> weight = read_entry<Vector2<C>>(plan.weights, cell);
    const bool as_left = place >= (by_upper ? upper.middle : lower.middle);
    const uint32_t which = (as_left ? 0 : 1) + (by_upper ? 0 : 2);
    return {static_cast<uint32_t>(cell) | which << kWhichShift,
            (as_left ? C(1) - weight.x : weight.x) * (by_upper ? C(1) - weight.y : weight.y)};
  }

  // What a lane has of a chunk of packets: those of its source cell, and the sums of what it gathers.
  template <int kCount, bool kMultiplies>
  struct Share {
    static constexpr int kPackets = kPacketsAtOnce<kCount>;

    ItemRows<T, kCount> grads;
    Offset<kCount> offsets[kPackets];
    int rows;       // of packets that lanes have in this chunk
    bool is_first;  // of the chunks
    Packet<T, kCount> own[kMultiplies ? kPackets : 1];
    C sums[kPackets][kCount];
  };

  // Adds the share of `kReaders` readers of the warp's source cells, from `index` on of those that its lanes have
  // found.
  template <int kReaders, int kCount, bool kMultiplies>
  __device__ __forceinline__ void take(Share<kCount, kMultiplies>& share, const Reader& found, int index, int leader,
                                       bool reads) {
    constexpr int kPackets = kPacketsAtOnce<kCount>;
    Packet<T, kCount> packets[kReaders][kPackets];
    Reader readers[kReaders];
#pragma unroll
    for (int i = 0; i < kReaders; ++i) {
      readers[i].word = __shfl_sync(kWholeWarp, found.word, leader + index + i);
      readers[i].share = __shfl_sync(kWholeWarp, found.share, leader + index + i);
    }
    C products[2] = {};
    if (reads) {
#pragma unroll
      for (int i = 0; i < kReaders; ++i) {
        const Offset<kCount> row = cell_of(readers[i].word) * share.grads.cell;
#pragma unroll
        for (int p = 0; p < kPackets; ++p) {
          if (p == 0 || p < share.rows) packets[i][p].read(share.grads.at(row + share.offsets[p]));
        }
      }
#pragma unroll
      for (int p = 0; p < kPackets; ++p) {
        if (p > 0 && p >= share.rows) break;
        C own[kCount];
        if constexpr (kMultiplies) share.own[p].numbers(own);
#pragma unroll
        for (int i = 0; i < kReaders; ++i) {
          C values[kCount];
          packets[i][p].numbers(values);
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            share.sums[p][c] += readers[i].share * values[c];
            if constexpr (kMultiplies) products[i] += own[c] * values[c];
          }
        }
      }
    }
    if constexpr (kMultiplies) {
      const int lanes = plan.gathered.lanes(), in_group = lane & (lanes - 1);
      const bool second = in_group >= lanes / 2;
      const C product = sum_pair(products[0], products[1], lanes, lane);
      if (!reads || (in_group & (lanes / 2 - 1)) != 0 || (kReaders == 1 && second)) return;
      const uint32_t word = kReaders > 1 && second ? readers[kReaders - 1].word : readers[0].word;
      leave_product(word, product, share.is_first);
    }
  }

  // Chunks of packets and source cells from the first ones to the ends. That chunks are the outer loop keeps what
  // readers share in the cache.
  template <int kCount, bool kMultiplies>
  __device__ __forceinline__ void gather(int first_chunk, int end_chunk, int first_cell, int end_cell) {
    constexpr int kPackets = kPacketsAtOnce<kCount>;
    const RowLanes& row = plan.gathered;
    const int lanes = row.lanes(), in_group = lane & (lanes - 1), leader = lane - in_group;
    const int group = threadIdx.x >> row.shift, groups = blockDim.x >> row.shift;
    const ItemRows<T, kCount> sources = ItemRows<T, kCount>(call.source, batch).found_once();
    const ItemRows<T, kCount> targets(call.grad_source, batch);
    Share<kCount, kMultiplies> share{ItemRows<T, kCount>(call.warped, batch).found_once()};
#pragma unroll 1
    for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
      const int first_packet = chunk * (kPackets * lanes), packet = first_packet + in_group;
      share.rows = (row.packets - first_packet + lanes - 1) >> row.shift;
      share.is_first = chunk == first_chunk;
#pragma unroll
      for (int p = 0; p < kPackets; ++p) {
        // A lane without a packet reads another one's and keeps nothing of it.
        share.offsets[p] = min(packet + p * lanes, row.packets - 1) * share.grads.packet;
      }
      CellWalk<C> walk(first_cell + group, groups, height, width);
#pragma unroll 1
      for (int start_cell = first_cell; start_cell < end_cell; start_cell += groups, walk.next()) {
        const int cell = start_cell + group;
        const bool exists = cell < end_cell;
        const Readers upper = readers_of(cell, walk.column > 0, exists);
        const Readers lower = readers_of(cell - width, walk.column > 0, exists && walk.row > 0);
        const int count = upper.count + lower.count;
        int least = count, most = count;  // of the warp's cells: it shuffles as a whole
        for (int distance = kWarpLanes / 2; distance >= lanes; distance /= 2) {
          least = min(least, __shfl_xor_sync(kWholeWarp, least, distance));
          most = max(most, __shfl_xor_sync(kWholeWarp, most, distance));
        }
        if constexpr (kMultiplies) {
          const Offset<kCount> offset = cell * sources.cell + packet * sources.packet;
#pragma unroll
          for (int p = 0; p < kPackets; ++p) {
            share.own[p].clear();
            if (exists && packet + p * lanes < row.packets) {
              share.own[p].read(sources.at(offset + p * lanes * sources.packet));
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kPackets * kCount; ++i) share.sums[i / kCount][i % kCount] = C(0);
#pragma unroll 1
        for (int start = 0; start < most; start += lanes) {
          const Reader found = find_reader(start + in_group, upper, lower);
          const int end = min(lanes, most - start), pairs_end = min(lanes, least - start);
          int index = 0;
#pragma unroll 1
          for (; index + 2 <= pairs_end; index += 2) take<2>(share, found, index, leader, true);
#pragma unroll 1
          for (; index < end; ++index) take<1>(share, found, index, leader, start + index < count);
        }
        if (!exists) continue;
        const Offset<kCount> offset = cell * targets.cell + packet * targets.packet;
#pragma unroll
        for (int p = 0; p < kPackets; ++p) {
          if (packet + p * lanes >= row.packets) break;
          Packet<T, kCount>::write(targets.at(offset + p * lanes * targets.packet), share.sums[p]);
        }
      }
    }
  }

  // No other warp has this reader as this one of its four.
  __device__ __forceinline__ void leave_product(uint32_t word, C product, bool is_first) {
    const int entry = 4 * cell_of(word) + static_cast<int>(word >> kWhichShift);
    write_entry(plan.products, entry, is_first ? product : read_entry<C>(plan.products, entry) + product);
  }
};

}  // namespace motarfuse
