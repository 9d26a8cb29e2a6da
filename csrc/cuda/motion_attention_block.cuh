// A block of motion attention's backward: which warp owns what, and what it loads and stores.
#pragma once

#include "motion_attention_rows.cuh"

namespace motarfuse {

template <class T, int D>
struct AttentionBlock {
  static constexpr int kSteps = D / 16;

  const AttentionCall& call;
  const Plan& plan;
  int batch, head, warp, lane, owner, part, own_tiles;
  // Of the addresses that lanes give for a 16 x 16 tile: its rows 0-15 and then its second halves, or both halves of
  // rows 0-7 and then of rows 8-15.
  uint32_t by_rows, by_halves;
  float factor_key;

  __device__ __forceinline__ AttentionBlock(const AttentionCall& call, const Plan& plan) : call(call), plan(plan) {
    batch = blockIdx.x / call.heads;
    head = blockIdx.x - batch * call.heads;
    warp = __shfl_sync(kWholeWarp, threadIdx.x / kWarpLanes, 0);
    lane = threadIdx.x % kWarpLanes;
    owner = warp / plan.split;
    part = warp - owner * plan.split;
    own_tiles = min(kOwnTiles, plan.query_tiles - owner * kOwnTiles);
    by_rows = lane % 16 * Row<D>::kBytes + lane / 16 * 16;
    by_halves = (lane % 8 + lane / 16 * 8) * Row<D>::kBytes + lane / 8 % 2 * 16;
    factor_key = fmaxf(sqrtf(fabsf(motion_scale() / call.scale)), 1.0F);
  }

  template <class View>
  __device__ __forceinline__ int64_t head_of(const View& view) const {
    return batch * view.batch + head * view.head;
  }
  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }
  __device__ __forceinline__ bool wants(int gradients) const { return (plan.wanted & gradients) != 0; }
  __device__ __forceinline__ float motion_scale() const {
    return call.motion_scale.data == nullptr ? 1.0F : read_float<T>(call.motion_scale, head * call.motion_scale.head);
  }

  __device__ __forceinline__ void load_queries() {
    const int rows = kTile * plan.query_tiles;
    load_tokens<T, D>(call.query, call.grad_out, batch, head, 0, call.queries, rows, call.width, 0);
    if (call.channels > 0 || wants(kWantsKeyBias)) {
      load_motion<T, D>(call.motion_query, head_of(call.motion_query), 0, call.queries, rows, call.channels,
                        motion_scale() / (call.scale * factor_key), wants(kWantsKeyBias), 0);
    }
  }

  __device__ __forceinline__ void load_keys(int first) {
    const int rows = kTile * plan.chunk_tiles;
    load_tokens<T, D>(call.key, call.value, batch, head, first, call.keys, rows, call.width, plan.keys);
    if (call.channels > 0) {
      load_motion<T, D>(call.motion_key, head_of(call.motion_key), first, call.keys, rows, call.channels, factor_key,
                        false, plan.keys);
    }
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
      float bias = first + row < call.keys ? 0.0F : -INFINITY;
      if (call.key_bias.data != nullptr && first + row < call.keys) {
        bias = kLog2E * read_float<T>(call.key_bias, head_of(call.key_bias) + (first + row) * call.key_bias.token);
      }
      write_shared(plan.bias + 4 * row, bias);
    }
  }

  // Sums of a tile's motion channels, as float in the place of its motion; of ones, where a 1 stands in such rows.
  __device__ __forceinline__ void leave_numbers(const float (&sums)[2][4], uint32_t rows, bool ones_alone) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t row = rows + (lane / 4 + 8 * (i % 2)) * Row<D>::kBytes;
      const float2 pair{sums[i / 2][2 * (i % 2)], sums[i / 2][2 * (i % 2) + 1]};
      if (!ones_alone) {
        write_shared(row + Row<D>::kHigh + 32 * (i / 2) + 8 * (lane % 4), pair);
      } else if (i < 2 && lane % 4 == 0) {
        write_shared(row + Row<D>::kOnes, pair.x);
      }
    }
  }

  // What leave_numbers left in `rows` rows, times `factor`, to the rows `first` on of (batch, head)'s block.
  __device__ __forceinline__ void store_numbers(const FloatGradient& gradient, int first, int count, int rows,
                                                float factor, uint32_t source, int worker, int workers) const {
    const int pair = worker % 8, step = workers / 8, end = min(rows, count - first);
    const bool low_exists = 2 * pair < call.channels, high_exists = 2 * pair + 1 < call.channels;
    if (!low_exists) return;
    const int64_t start = index() * count * call.channels;
    int row = worker / 8, target = (first + row) * call.channels + 2 * pair;
    source += row * Row<D>::kBytes + Row<D>::kHigh + 8 * pair;
    with_type<T>(gradient.data, gradient.single, [&](const auto* data) {
      auto* const block = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(data) + start;
      using Number = std::remove_reference_t<decltype(*block)>;
#pragma unroll 1
      for (; row < end; row += step, target += step * call.channels, source += step * Row<D>::kBytes) {
        const float2 values = read_shared<float2>(source);
        block[target] = static_cast<Number>(factor * values.x);
        if (high_exists) block[target + 1] = static_cast<Number>(factor * values.y);
      }
    });
  }

  __device__ __forceinline__ void store_keys(int first) {
    const int rows = kTile * plan.chunk_tiles;
    if (wants(kWantsKey)) {
      store_tokens<T, D>(call.grad_key, head_of(call.grad_key), first, call.keys, rows, call.width, plan.keys,
                         threadIdx.x, blockDim.x);
    }
    if (wants(kWantsValue)) {
      store_tokens<T, D>(call.grad_value, head_of(call.grad_value), first, call.keys, rows, call.width,
                         plan.keys + Row<D>::kSecond, threadIdx.x, blockDim.x);
    }
    if (wants(kWantsMotionKey)) {
      store_numbers(call.grad_motion_key, first, call.keys, rows, call.scale * factor_key, plan.keys, threadIdx.x,
                    blockDim.x);
    }
    if (wants(kWantsKeyBias)) {
      const bool beside_motion = call.channels < kMaxMotionChannels;
      const uint32_t source = plan.keys + (beside_motion ? Row<D>::kHigh + 4 * kMaxMotionChannels - 4 : Row<D>::kOnes);
      for (int row = threadIdx.x; row < min(rows, call.keys - first); row += blockDim.x) {
        write_float<T>(call.grad_key_bias.data, call.grad_key_bias.single, index() * call.keys + first + row,
                       read_shared<float>(source + row * Row<D>::kBytes));
      }
    }
  }

  // This lane's share of the sum of motion_query times what leave_numbers left.
  __device__ __forceinline__ float sum_with_motion(uint32_t source, int first) const {
    const FloatView& view = call.motion_query;
    const int channel = lane % kMaxMotionChannels, end = min(kTile * own_tiles, call.queries - first);
    float sum = 0.0F;
    if (channel >= call.channels) return sum;
    with_type<T>(view.data, view.single, [&](const auto* data) {
      int row = lane / kMaxMotionChannels;
      const auto* motion = data + head_of(view) + (first + row) * view.token + channel * view.channel;
      constexpr int kStep = kWarpLanes / kMaxMotionChannels;
      source += row * Row<D>::kBytes + Row<D>::kHigh + 4 * channel;
#pragma unroll 4
      for (; row < end; row += kStep, motion += kStep * view.token, source += kStep * Row<D>::kBytes) {
        sum += read_shared<float>(source) * static_cast<float>(*motion);
      }
    });
    return sum;
  }
};

}  // namespace motarfuse
