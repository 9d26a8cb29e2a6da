// Launches of motion_attention's backward: how a call is shared out on this device, and which kernel takes it.
#include "motion_attention_backward.cuh"

#include "../library.h"
#include "launch.h"

namespace motarfuse {
namespace {

// A lane a number, or a warp where many are summed. Each job has every `count`-th block.
template <class T>
__global__ void __launch_bounds__(kSumThreads) motion_attention_sum_kernel(const __grid_constant__ AttentionSums sums) {
  const AttentionSum& job = sums.jobs[blockIdx.x % sums.count];
  const bool by_warps = job.count > kWarpLanes;
  const int lanes = by_warps ? kWarpLanes : 1, lane = threadIdx.x % lanes, workers = kSumThreads / lanes;
  const int64_t blocks = gridDim.x / sums.count, total = job.outer * job.inner;
  for (int64_t i = blockIdx.x / sums.count * int64_t{workers} + threadIdx.x / lanes; i < total; i += blocks * workers) {
    const int64_t outer = i / job.inner, inner = i - outer * job.inner;
    const float* source = job.partial + outer * job.count * job.inner + inner;
    float sum = 0.0F;
    for (int64_t j = lane; j < job.count; j += lanes) sum += source[j * job.inner];
    if (by_warps) {
      for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, distance);
      }
    }
    if (lane == 0) write_float<T>(job.target, job.single, i, sum);
  }
}

int wanted_of(const AttentionCall& call) {
  const auto bit = [](const void* gradient, int wanted) { return gradient != nullptr ? wanted : 0; };
  const int motion = call.channels > 0 ? kWantsMotionQuery | kWantsMotionKey : 0;
  return bit(call.grad_query.data, kWantsQuery) | bit(call.grad_key.data, kWantsKey) |
         bit(call.grad_value.data, kWantsValue) | bit(call.grad_motion_query.data, kWantsMotionQuery & motion) |
         bit(call.grad_motion_key.data, kWantsMotionKey & motion) |
         bit(call.grad_motion_scale.data, kWantsMotionScale) | bit(call.grad_key_bias.data, kWantsKeyBias);
}

// The largest chunks that let as many blocks onto a multiprocessor as registers do, if those hold 32 keys; otherwise
// fewer blocks.
template <int D>
Plan make_plan(const AttentionCall& call, const SharedMemory& memory) {
  Plan plan;
  plan.wanted = wanted_of(call);
  plan.query_tiles = (call.queries + kTile - 1) / kTile;
  plan.owners = (plan.query_tiles + kOwnTiles - 1) / kOwnTiles;
  const int key_tiles = (call.keys + kTile - 1) / kTile;
  plan.split = std::max(1, std::min(4 / plan.owners, key_tiles));
  const auto fits = [&](int tiles, int limit) {
    plan.chunk_tiles = tiles;
    plan.place(Row<D>::kBytes);
    return static_cast<int64_t>(plan.bytes) <= limit;
  };
  int tiles = 0;
  for (int blocks = kMaxThreads<D> / plan.threads(); blocks >= 1 && tiles == 0; --blocks) {
    const int limit = std::min(memory.block, memory.multiprocessor / blocks - memory.reserved);
    const int least = blocks == 1 ? 1 : std::min(key_tiles, std::max(2, plan.split));
    tiles = std::min(key_tiles, 64);
    while (tiles >= least && !fits(tiles, limit)) --tiles;
    if (tiles < least) tiles = 0;
  }
  STD_TORCH_CHECK(tiles > 0, "motion_attention: the CUDA backward of ", call.queries, " queries of width ", call.width,
                  " needs ", plan.bytes, " bytes of shared memory, a block of this device has ", memory.block);
  const int chunks = (key_tiles + tiles - 1) / tiles, even = (key_tiles + chunks - 1) / chunks;
  const int whole = (even + plan.split - 1) / plan.split * plan.split;  // every warp that shares it as many tiles
  fits(whole <= tiles ? whole : even, memory.block);
  // As many tiles of keys at once as make the second part shortest: products of tiles and loads of their operands.
  const int groups = 2 * D / 16 / BackwardBlock<Half, D>::kUnitGroups + 1, warps = plan.owners * plan.split;
  const auto cost = [&](int unit) {
    const int units = groups * ((plan.chunk_tiles + unit - 1) / unit);
    return (units + warps - 1) / warps * (3 * unit + 1);
  };
  for (int unit = 2; unit <= kUnitTiles; ++unit) {
    if (cost(unit) <= cost(plan.unit_tiles)) plan.unit_tiles = unit;
  }
  return plan;
}

template <class T, int D>
void launch_backward(const AttentionCall& call, int32_t device, cudaStream_t stream) {
  const SharedMemory memory = shared_memory_of(device);
  const Plan plan = make_plan<D>(call, memory);
  if (plan.wanted == 0) return;
  allow_shared_memory(&motion_attention_backward_kernel<T, D>, memory);
  const unsigned blocks = static_cast<unsigned>(call.batch * call.heads);
  motion_attention_backward_kernel<T, D><<<blocks, plan.threads(), plan.bytes, stream>>>(call, plan);
  check_launch("motion_attention_backward_kernel");
}

template <class T>
void launch_width(const AttentionCall& call, int32_t device, cudaStream_t stream) {
  if (call.width <= 32) return launch_backward<T, 32>(call, device, stream);
  if (call.width <= 64) return launch_backward<T, 64>(call, device, stream);
  if (call.width <= 80) return launch_backward<T, 80>(call, device, stream);
  if (call.width <= 96) return launch_backward<T, 96>(call, device, stream);
  launch_backward<T, 128>(call, device, stream);
}

template <class T>
void launch_sums(const AttentionSums& sums, int multiprocessors, cudaStream_t stream) {
  int64_t most = 0;
  for (int i = 0; i < sums.count; ++i) {
    const AttentionSum& job = sums.jobs[i];
    most = std::max(most, job.outer * job.inner * (job.count > kWarpLanes ? kWarpLanes : 1));
  }
  if (most == 0) return;
  const int64_t wanted = (most + kSumThreads - 1) / kSumThreads;
  const unsigned blocks = sums.count * static_cast<unsigned>(std::min<int64_t>(wanted, 16 * multiprocessors + 1));
  motion_attention_sum_kernel<T><<<blocks, kSumThreads, 0, stream>>>(sums);
  check_launch("motion_attention_sum_kernel");
}

}  // namespace

AttentionGradients motion_attention_backward_cuda(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& motion_query, const std::optional<Tensor>& motion_key,
    const std::optional<Tensor>& motion_scale, const std::optional<Tensor>& key_bias, const Tensor& out,
    const Tensor& lse, double scale, bool packed, int64_t needs) {
  const int32_t device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  AttentionCall call = attention_call(grad_out, query, key, value, motion_query, motion_key, motion_scale, key_bias,
                                      out, lse, scale);
  STD_TORCH_CHECK(call.queries <= kMaxQueries, "motion_attention: the CUDA backward takes at most ", kMaxQueries,
                  " queries, got ", call.queries);
  STD_TORCH_CHECK(call.width > 0 && call.width <= 128 && call.width % 8 == 0,
                  "motion_attention: the CUDA backward takes widths of 8, 16, ... 128, got ", call.width);
  STD_TORCH_CHECK(3 * key.size(2) * query.size(1) * query.size(3) < (int64_t{1} << 30),
                  "motion_attention: the CUDA backward takes gradients of fewer than 2^30 numbers an image");
  AttentionResults results =
      allocate_attention_gradients(call, query, key, motion_query, motion_key, motion_scale, key_bias, packed, needs);
  if (call.empty()) {
    for (auto& gradient : results.gradients) {
      if (gradient.has_value()) torch::stable::zero_(*gradient);
    }
    return as_tuple(results, query);
  }
  const cudaStream_t stream = current_stream(device);
  if (query.scalar_type() == ScalarType::Half) {
    launch_width<Half>(call, device, stream);
    launch_sums<Half>(results.sums, num_multiprocessors(device), stream);
  } else {
    launch_width<BFloat16>(call, device, stream);
    launch_sums<BFloat16>(results.sums, num_multiprocessors(device), stream);
  }
  return as_tuple(results, query);
}

}  // namespace motarfuse
