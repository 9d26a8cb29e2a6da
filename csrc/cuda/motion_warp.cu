// motion_warp's forward on the GPU: one launch, a block for a tile of an item's cells. First a thread takes a cell: the
// softmax of its part logits, the flow, the visibility, and which four cells of the source it is sampled from, twelve
// bytes that stay in shared memory. Then lanes take channels, 16 bytes each: four reads and one store, of two cells at
// a time. Cells that are neighbours share what they read, by the cache: channels are the outer loop, so that a few rows
// of the grid stay there.
//
// Shared memory of a block, in numbers of the type computed in: 20 a part, 2 a cell and one word more.
#include "motion_warp.cuh"

#include <algorithm>

namespace motarfuse {
namespace {

// Blocks a multiprocessor must hold: eight reads a lane are under way in 80 registers.
template <class T>
constexpr int kForwardBlocks = sizeof(T) == 8 ? 2 : 3;
constexpr int kCellsAtOnce = 2;
constexpr int kLargestTile = kBlockThreads;

struct ForwardPlan {
  int tile = 0, tiles = 0;  // cells of a block, blocks of an item
  RowLanes row;
};

template <class C>
struct ForwardLayout {
  uint32_t weights, corners, bytes;

  MOTARFUSE_HOST_DEVICE ForwardLayout(int parts, int tile) {
    weights = motion_bytes<C>(parts);
    corners = weights + tile * static_cast<uint32_t>(sizeof(Vector2<C>));
    bytes = corners + tile * static_cast<uint32_t>(sizeof(uint32_t));
  }
};

// The thread's cell: its flow and visibility are written, its sample is left in shared memory.
template <class C>
__device__ __forceinline__ void find_cell(const WarpCall& call, const ForwardLayout<C>& layout, int64_t batch,
                                          int first, int parts) {
  const int height = static_cast<int>(call.height), width = static_cast<int>(call.width);
  const int cell = first + threadIdx.x;
  const CellWalk<C> walk(cell, 1, height, width);
  CellMotion<C> motion;
  with_logits<C>(call.logits.type, [&](auto l) {
    motion = move_cell<decltype(l)>(call.logits, cell_offset(call.logits, batch, cell), parts, walk.x(), walk.y());
  });
  const auto& [x, y] = motion.displacement;
  const int64_t flow = batch * call.flow.batch + cell * call.flow.cell;
  write_as(call.flow.data, call.flow.type, flow, walk.x() + x);
  write_as(call.flow.data, call.flow.type, flow + call.flow.channel, walk.y() + y);
  const BilinearSample<C> sample(walk.row, walk.column, x, y, height, width);
  write_entry(layout.weights, threadIdx.x, Vector2<C>{sample.x.weight, sample.y.weight});
  write_entry(layout.corners, threadIdx.x, corner_word(sample, width));
  C visible = C(1);
  if (call.source_logits.data != nullptr) {
    BackgroundSums<C> sums;
    CellSoftmax<C> source;
    with_logits<C>(call.source_logits.type, [&](auto l) {
      const int64_t offset = cell_offset(call.source_logits, batch, cell);
      source = pass_channels<decltype(l), C>(call.source_logits, offset, parts, sums);
    });
    visible = visibility(sums.background * source.inverse_sum, motion.background);
  }
  write_as(call.visibility.data, call.visibility.type, cell_offset(call.visibility, batch, cell), visible);
}

template <class T, int kCount>
__device__ __forceinline__ void sample_cells(const WarpCall& call, const RowLanes& row,
                                             const ForwardLayout<Compute<T>>& layout, int64_t batch, int first,
                                             int cells) {
  using C = Compute<T>;
  const int group = threadIdx.x >> row.shift, groups = blockDim.x >> row.shift;
  const ItemRows<T, kCount> source = ItemRows<T, kCount>(call.source, batch).found_once();
  const ItemRows<T, kCount> warped(call.warped, batch);
#pragma unroll 1
  for (int packet = threadIdx.x & (row.lanes() - 1); packet < row.packets; packet += row.lanes()) {
    const Offset<kCount> of_source = packet * source.packet, of_warped = packet * warped.packet;
#pragma unroll 1
    for (int start = group; start < cells; start += kCellsAtOnce * groups) {
      Packet<T, kCount> corners[kCellsAtOnce][4];
      Vector2<C> weights[kCellsAtOnce];
#pragma unroll
      for (int s = 0; s < kCellsAtOnce; ++s) {
        // A cell that does not exist reads what the first one reads.
        const int cell = start + s * groups < cells ? start + s * groups : start;
        weights[s] = read_entry<Vector2<C>>(layout.weights, cell);
        const CornerOffsets<kCount> offsets(source, read_entry<uint32_t>(layout.corners, cell),
                                            static_cast<int>(call.width));
        corners[s][0].read(source.at(offsets.upper_left + of_source));
        corners[s][1].read(source.at(offsets.upper_right + of_source));
        corners[s][2].read(source.at(offsets.lower_left + of_source));
        corners[s][3].read(source.at(offsets.lower_right + of_source));
      }
#pragma unroll
      for (int s = 0; s < kCellsAtOnce; ++s) {
        const auto& [wx, wy] = weights[s];
        const C shares[4] = {(C(1) - wx) * (C(1) - wy), wx * (C(1) - wy), (C(1) - wx) * wy, wx * wy};
        C sums[kCount] = {};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          C values[kCount];
          corners[s][c].numbers(values);
#pragma unroll
          for (int i = 0; i < kCount; ++i) sums[i] = c == 0 ? shares[0] * values[i] : sums[i] + shares[c] * values[i];
        }
        const int cell = start + s * groups;
        if (cell < cells) Packet<T, kCount>::write(warped.at((first + cell) * warped.cell + of_warped), sums);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks<T>)
    motion_warp_forward_kernel(const __grid_constant__ WarpCall call, const __grid_constant__ ForwardPlan plan) {
  using C = Compute<T>;
  const int parts = static_cast<int>(call.parts);
  const int64_t batch = blockIdx.x / plan.tiles;
  const int first = (blockIdx.x % plan.tiles) * plan.tile;
  const int cells = min(plan.tile, static_cast<int>(call.num_cells()) - first);
  const ForwardLayout<C> layout(parts, plan.tile);
  prepare_motions<C>(call.postures, batch, parts);
  if (static_cast<int>(threadIdx.x) < cells) find_cell(call, layout, batch, first, parts);
  if (plan.row.packets == 0) return;
  __syncthreads();
  if (plan.row.packed) {
    sample_cells<T, kWordChannels<T>>(call, plan.row, layout, batch, first, cells);
  } else {
    sample_cells<T, 1>(call, plan.row, layout, batch, first, cells);
  }
}

// Tiles as large as fill the machine: they share the reading of postures, and of rows of the grid.
int choose_tile(const WarpCall& call, int multiprocessors) {
  const int64_t cells = call.num_cells(), enough = 4 * int64_t{multiprocessors};
  const int smallest = call.channels > 0 ? 8 : kWarpLanes;
  int tile = kLargestTile;
  while (tile > smallest && (tile / 2 >= cells || call.batch * ((cells + tile - 1) / tile) < enough)) tile /= 2;
  return tile;
}

template <class T>
void launch_forward(const WarpCall& call, int32_t device) {
  ForwardPlan plan;
  plan.tile = choose_tile(call, num_multiprocessors(device));
  plan.tiles = static_cast<int>((call.num_cells() + plan.tile - 1) / plan.tile);
  const auto packs_tokens = [&](const TokensView& view) {
    return packs(view, call.num_cells(), call.channels, sizeof(T));
  };
  const bool packed = packs_tokens(call.source) && packs_tokens(call.warped);
  plan.row = share_row(call.channels, packed, call.source.channel != 1, sizeof(T));
  STD_TORCH_CHECK(call.batch * plan.tiles <= kMaxBlocks, "motion_warp: too many cells for one launch");
  const int64_t bytes = ForwardLayout<Compute<T>>(static_cast<int>(call.parts), plan.tile).bytes;
  allow_bytes(&motion_warp_forward_kernel<T>, "forward", bytes, device);
  const unsigned blocks = static_cast<unsigned>(call.batch * plan.tiles);
  const int threads = call.channels > 0 ? kBlockThreads : std::max(plan.tile, kBlockThreads / 2);
  const cudaStream_t stream = current_stream(device);
  motion_warp_forward_kernel<T><<<blocks, threads, bytes, stream>>>(call, plan);
  check_launch("motion_warp_forward_kernel");
}

}  // namespace

WarpResults motion_warp_forward_cuda(const Tensor& source, const Tensor& source_keypoints, const Tensor& source_affines,
                                     const Tensor& target_keypoints, const Tensor& target_affines,
                                     const Tensor& part_logits, const std::optional<Tensor>& source_part_logits,
                                     int64_t height, int64_t width) {
  const int32_t device = source.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const WarpInputs inputs{source,         source_keypoints, source_affines,    target_keypoints,
                          target_affines, part_logits,      source_part_logits};
  WarpCall call = warp_call(inputs, height, width);
  check_sizes(call);
  WarpResults results = allocate_warped(call, inputs);
  if (call.batch == 0) return results;
  dispatch_float(call.source.type, [&](auto t) { launch_forward<decltype(t)>(call, device); });
  return results;
}

}  // namespace motarfuse
