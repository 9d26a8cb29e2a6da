// Launches of motion_warp's backward: how a call is shared out on this device. No atomics: every sum has a fixed order.
#include "motion_warp_gather.cuh"

#include <algorithm>
#include <initializer_list>

namespace motarfuse {
namespace {

// Blocks of kMostThreads that a multiprocessor must hold: 128 registers a thread.
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 8 ? 1 : 2;
constexpr int kLargestTile = 1024;
constexpr int kLeastRange = 16;  // source cells

template <class T, int kCount>
__device__ __forceinline__ void do_item(GatheringBlock<T>& block) {
  block.find_cells(true, true);
  block.sort_cells();
  block.template gather<kCount, true>(0, block.plan.chunks, 0, block.cells);
  __syncthreads();
  block.add_products();
  __syncthreads();
  block.finish_postures();
}

// An item's blocks are neighbours, so that what several of them read is read from DRAM once.
template <class T>
__global__ void __launch_bounds__(kMostThreads, kBackwardBlocks<T>)
    motion_warp_backward_kernel(const __grid_constant__ WarpCall call, const __grid_constant__ BackwardPlan plan) {
  const int blocks = plan.whole ? 1 : plan.gathers + plan.tiles;
  const int64_t batch = blockIdx.x / blocks;
  const int index = blockIdx.x % blocks;
  prepare_motions<Compute<T>>(call.postures, batch, static_cast<int>(call.parts));
  if (plan.whole) {
    GatheringBlock<T> block(call, plan, batch);
    if (plan.gathered.packed) {
      do_item<T, kWordChannels<T>>(block);
    } else {
      do_item<T, 1>(block);
    }
  } else if (index < plan.gathers) {
    GatheringBlock<T> block(call, plan, batch);
    block.find_cells(true, false);
    block.sort_cells();
    const int first = index / plan.ranges * plan.chunks, end = min(first + plan.chunks, plan.all_chunks());
    const int first_cell = index % plan.ranges * plan.range, end_cell = min(first_cell + plan.range, block.cells);
    if (plan.gathered.packed) {
      block.template gather<kWordChannels<T>, false>(first, end, first_cell, end_cell);
    } else {
      block.template gather<1, false>(first, end, first_cell, end_cell);
    }
  } else {
    BackwardBlock<T> block(call, plan, batch, index - plan.gathers, plan.tile);
    block.find_cells(false, true);
    if (!plan.moves) return;
    __syncthreads();
    if (call.warped.data != nullptr) {
      if (plan.dotted.packed) {
        block.template add_dots<kWordChannels<T>>();
      } else {
        block.template add_dots<1>();
      }
      __syncthreads();
    }
    block.finish_postures();
  }
}

// Gradients of postures from the sums of an item's tiles, a thread a part.
template <class C>
__global__ void __launch_bounds__(kBlockThreads)
    motion_warp_postures_kernel(const __grid_constant__ WarpCall call, const __grid_constant__ BackwardPlan plan) {
  const int64_t index = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x;
  if (index >= call.batch * call.parts) return;
  const int64_t batch = index / call.parts, part = index % call.parts;
  MotionSums<C> sums;
  sums.clear();
#pragma unroll 4
  for (int tile = 0; tile < plan.tiles; ++tile) {
    const C* const partial =
        static_cast<const C*>(plan.partial) + ((batch * plan.tiles + tile) * call.parts + part) * int64_t{kMotionSums};
    sums.merge({partial[0], partial[1], {partial[2], partial[3], partial[4], partial[5]}});
  }
  const PosturePair<C> pair = read_postures<C>(call.postures, batch, part);
  write_postures(call.grad_postures, batch, part, posture_gradient(pair, part_motion(pair), sums));
}

// A gathering block has one chunk of packets, of at most four or as few as fill the machine; where that does not fill
// it, source cells are shared out too, at the price of as many sorts.
void share_gathering(BackwardPlan& plan, const WarpCall& call, int multiprocessors) {
  const int chunks = plan.all_chunks(), cells = static_cast<int>(call.num_cells());
  const int64_t most = std::max<int64_t>(4, 4 * int64_t{multiprocessors} / call.batch);
  int shares = static_cast<int>(std::min<int64_t>(chunks, most)), ranges = 1;
  plan.chunks = (chunks + shares - 1) / shares;
  shares = (chunks + plan.chunks - 1) / plan.chunks;
  while (call.batch * shares * ranges < multiprocessors && cells >= 2 * kLeastRange * ranges) ranges *= 2;
  plan.range = (cells + ranges - 1) / ranges;
  plan.ranges = (cells + plan.range - 1) / plan.range;
  plan.gathers = shares * plan.ranges;
}

// An item's cells in one block, unless they are many or items are few.
void share_cells(BackwardPlan& plan, const WarpCall& call, int multiprocessors) {
  const int cells = static_cast<int>(call.num_cells());
  int tiles = (cells + kLargestTile - 1) / kLargestTile;
  while (call.batch * tiles < multiprocessors && cells > tiles * kWarpLanes) tiles *= 2;
  plan.tile = ((cells + tiles - 1) / tiles + kWarpLanes - 1) / kWarpLanes * kWarpLanes;
  plan.tiles = (cells + plan.tile - 1) / plan.tile;
}

// One block an item where two of them fit a multiprocessor, and where the machine has few of them to wait for at last.
template <class C>
bool takes_whole_items(BackwardPlan& plan, const WarpCall& call, int multiprocessors, int32_t device) {
  plan.whole = true;
  plan.threads = kMostThreads;
  plan.gathers = plan.tiles = 1;
  plan.chunks = plan.all_chunks();
  plan.tile = static_cast<int>(call.num_cells());
  plan.place<C>(static_cast<int>(call.parts), plan.tile);
  const int64_t at_once = 2 * int64_t{multiprocessors};
  const int64_t rounds = at_once > 0 ? (call.batch + at_once - 1) / at_once : 1;
  const SharedMemory memory = shared_memory_of(device);
  return 2 * (int64_t{plan.bytes} + memory.reserved) <= memory.multiprocessor &&
         4 * call.batch >= 3 * rounds * at_once;
}

template <class T>
void launch_backward(const WarpCall& call, const Tensor& like, int32_t device) {
  using C = Compute<T>;
  const int64_t size = sizeof(T);
  const int multiprocessors = num_multiprocessors(device);
  const bool wants_postures = call.wants_postures() && call.parts > 0;
  const bool moves = wants_postures || call.grad_logits.data != nullptr;
  const bool gathers = call.grad_source.data != nullptr && call.warped.data != nullptr && call.channels > 0;
  const auto share = [&](std::initializer_list<const TokensView*> views) {
    bool packed = true, strided = true;
    for (const TokensView* view : views) {
      packed = packed && packs(*view, call.num_cells(), call.channels, size);
      strided = strided && view->channel != 1;
    }
    return share_row(call.channels, packed, strided, size);
  };
  const auto share_gathered = [&](std::initializer_list<const TokensView*> views) {
    RowLanes row = share(views);
    // Fewer lanes with more packets each find readers less often.
    constexpr int kPackets = kPacketsAtOnce<kWordChannels<T>>;
    while (row.packed && row.shift > 3 && row.packets <= kPackets << (row.shift - 1)) --row.shift;
    return row;
  };
  BackwardPlan plan;
  plan.gathered = share_gathered({&call.warped, &call.grad_source, &call.source});
  if (!gathers || !moves || !takes_whole_items<C>(plan, call, multiprocessors, device)) {
    plan = BackwardPlan();
    plan.threads = kBlockThreads;
    if (gathers) {
      plan.gathered = share_gathered({&call.warped, &call.grad_source});
      share_gathering(plan, call, multiprocessors);
    }
    if (moves || call.grad_source_logits.data != nullptr) {
      plan.dotted = share({&call.warped, &call.source});
      share_cells(plan, call, multiprocessors);
    }
    plan.place<C>(static_cast<int>(call.parts), static_cast<int>(call.num_cells()));
  }
  plan.moves = moves;
  if (plan.gathers + plan.tiles == 0) return;
  STD_TORCH_CHECK(call.batch * plan.blocks() <= kMaxBlocks, "motion_warp: too many items for one launch");
  Tensor partial = no_gradient(like);
  if (wants_postures && plan.tiles > 1) {
    partial = new_empty(like, {call.batch, plan.tiles, call.parts, kMotionSums}, call.compute);
    plan.partial = partial.data_ptr();
  }
  allow_bytes(&motion_warp_backward_kernel<T>, "backward", plan.bytes, device);
  const cudaStream_t stream = current_stream(device);
  const unsigned blocks = static_cast<unsigned>(call.batch * plan.blocks());
  motion_warp_backward_kernel<T><<<blocks, plan.threads, plan.bytes, stream>>>(call, plan);
  check_launch("motion_warp_backward_kernel");
  if (plan.partial == nullptr) return;
  const unsigned finishing = static_cast<unsigned>((call.batch * call.parts + kBlockThreads - 1) / kBlockThreads);
  motion_warp_postures_kernel<C><<<finishing, kBlockThreads, 0, stream>>>(call, plan);
  check_launch("motion_warp_postures_kernel");
}

}  // namespace

WarpGradients motion_warp_backward_cuda(const std::optional<Tensor>& grad_warped,
                                        const std::optional<Tensor>& grad_flow,
                                        const std::optional<Tensor>& grad_visibility, const Tensor& source,
                                        const Tensor& source_keypoints, const Tensor& source_affines,
                                        const Tensor& target_keypoints, const Tensor& target_affines,
                                        const Tensor& part_logits, const std::optional<Tensor>& source_part_logits,
                                        int64_t height, int64_t width, int64_t needs) {
  const int32_t device = source.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const WarpInputs inputs{source,         source_keypoints, source_affines,    target_keypoints,
                          target_affines, part_logits,      source_part_logits};
  WarpCall call = warp_call(inputs, height, width);
  check_sizes(call);
  take_warped_gradients(call, inputs, grad_warped, grad_flow, grad_visibility);
  STD_TORCH_CHECK(call.warped.data == nullptr || call.warped.type == call.source.type,
                  "motion_warp: grad_warped must have the source's dtype");
  WarpGradients gradients = allocate_warp_gradients(call, inputs, needs);
  if (call.batch == 0) return gradients;
  if (call.grad_source.data != nullptr && call.warped.data == nullptr) torch::stable::zero_(std::get<0>(gradients));
  dispatch_float(call.source.type, [&](auto t) { launch_backward<decltype(t)>(call, source, device); });
  return gradients;
}

}  // namespace motarfuse
