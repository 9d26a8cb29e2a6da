// motion_attention's backward for half types and short sequences: one block a (batch, head), which reads everything
// once, and a small second launch where heads or batches are summed. No atomics: every sum has a fixed order.
//
// A warp owns 32 queries and keeps the sums of their gradients in registers. Keys pass in chunks, and for each chunk
//   1. every warp computes P = exp2(S - lse) and dS = P (dP - delta) of its queries, adds dS K to their gradient and
//      leaves P and dS in shared memory,
//   2. the warps share P^T dO and dS^T Q, the whole gradients of this chunk's values and keys, out among themselves.
// Where queries are few, several warps own the same 32 and take every n-th tile of keys; their sums are added last.
// What bounds it is the bandwidth of shared memory: 32 queries a warp halve what 16 would read of keys and values.
//
// Shared memory in bytes, with D = d padded to 32, 64, 80, 96 or 128, n = 16 ceil(N / 16), c = keys of a chunk (a
// multiple of 16), w = warps that share 32 queries (4 up to N = 32, 2 up to N = 64, else 1, and no more than M / 16):
//   (n + c) (4 D + 80)                           query, grad_out, motion; key, value, motion
//   + n (4 c + 16)                               P and dS; with w > 1 at least 1024 ceil(n / 32) (D / 8 + 2), the sums
//   + 8 n + 4 c + 256                            lse and delta, key bias, sums of warps
// The operator takes what fits with c = 16; make_plan prefers chunks of 32 keys or more and as many blocks a
// multiprocessor as registers allow. Rows are an odd number of 16-byte words, so that eight of them meet no bank twice.
#pragma once

#include "motion_attention_block.cuh"

namespace motarfuse {
namespace {

// Two 16 x 8 sums as the first operand of the next product, rounded.
template <class T>
__device__ __forceinline__ void round_tile(uint32_t (&fragment)[4], const float (&sums)[2][4], float factor) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    fragment[i] = pack<T>(factor * sums[i / 2][2 * (i % 2)], factor * sums[i / 2][2 * (i % 2) + 1]);
  }
}

template <class T>
__device__ __forceinline__ void multiply_tiles(float (&sums)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  multiply_add<T>(sums[0], a, b[0], b[1]);
  multiply_add<T>(sums[1], a, b[2], b[3]);
}

template <class T, int D>
struct BackwardBlock : AttentionBlock<T, D> {
  using Base = AttentionBlock<T, D>;
  using Base::by_halves, Base::by_rows, Base::call, Base::factor_key, Base::kSteps, Base::lane, Base::own_tiles;
  using Base::owner, Base::part, Base::plan, Base::warp;
  using Base::head_of, Base::index, Base::leave_numbers, Base::motion_scale, Base::store_numbers, Base::wants;

  // Groups of 16 columns that a warp takes at once in the second part.
  static constexpr int kUnitGroups = D % 32 == 0 ? 2 : 1;

  float grad_query[kOwnTiles][kSteps][2][4], grad_motion[kOwnTiles][2][4];

  __device__ __forceinline__ BackwardBlock(const AttentionCall& call, const Plan& plan) : Base(call, plan) {
#pragma unroll
    for (int t = 0; t < kOwnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kSteps * 8; ++i) grad_query[t][i / 8][i / 4 % 2][i % 4] = 0.0F;
#pragma unroll
      for (int i = 0; i < 8; ++i) grad_motion[t][i / 4][i % 4] = 0.0F;
    }
  }

  // A warp's rows of `out` as second operands, read before the wait for everything else.
  struct OutRows {
    uint32_t words[kOwnTiles][kSteps][4];
  };

  __device__ __forceinline__ void read_out(OutRows& out) {
    const TokenView& view = call.out;
    const int first = owner * (kOwnTiles * kTile) + lane / 4, last = call.queries - 1, width = call.width;
    const int channel = 2 * (lane % 4);
    const T* base = static_cast<const T*>(view.data) + head_of(view);
    const auto read = [&](auto whole) {
#pragma unroll
      for (int n = 0; n < 2 * kOwnTiles; ++n) {
        // A row that does not exist is multiplied by zeros.
        const T* source = base + min(first + 8 * n, last) * view.token + channel * view.channel;
#pragma unroll
        for (int k = 0; k < 2 * kSteps; ++k) {
          uint32_t word = 0;
          if constexpr (decltype(whole)::value) {
            word = __ldg(reinterpret_cast<const uint32_t*>(source + 8 * k));
          } else if (8 * k < width) {
            const T pair[2] = {source[8 * k * view.channel], source[(8 * k + 1) * view.channel]};
            memcpy(&word, pair, sizeof(word));
          }
          out.words[n / 2][k / 2][2 * (n % 2) + k % 2] = word;
        }
      }
    };
    if (view.words && call.width == D) {
      read(std::true_type{});
    } else {
      read(std::false_type{});
    }
  }

  // delta = rowsum(dO O): the diagonal of the product of a tile's rows of both. Left in shared memory beside lse.
  __device__ __forceinline__ void compute_delta(const OutRows& out) {
    const int group = lane / 4;
#pragma unroll
    for (int t = 0; t < kOwnTiles; ++t) {
      if (t >= own_tiles) break;
      const int first = (owner * kOwnTiles + t) * kTile;
      float products[2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t grad[4];
        load_matrices(grad, first * Row<D>::kBytes + by_rows + Row<D>::kSecond + 32 * k);
        multiply_tiles<T>(products, grad, out.words[t][k]);
      }
      if (part == 0 && lane % 4 == group / 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = first + 8 * i + group;
          const float lse = row < call.queries ? call.lse[index() * call.queries + row] : INFINITY;
          const float delta = group % 2 == 0 ? products[i][2 * i] : products[i][2 * i + 1];
          write_shared(plan.rows + 8 * row, float2{lse, delta});
        }
      }
      __syncwarp();
    }
  }

  // P, dS and the gradients of `kTiles` tiles of queries from the tiles of keys in the chunk.
  template <int kTiles>
  __device__ __forceinline__ void pass_keys(int tiles) {
    const bool has_motion = call.channels > 0;
    const float factor = call.scale * kLog2E;
    float2 rows[kTiles][2];  // lse and delta
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      rows[i / 2][i % 2] = read_shared<float2>(plan.rows + 8 * (owner * (kOwnTiles * kTile) + lane / 4 + 8 * i));
    }
    const uint32_t own = owner * (kOwnTiles * kTile * Row<D>::kBytes) + by_rows;
    constexpr int kTileBytes = kTile * Row<D>::kBytes;
    uint32_t keys = plan.keys + part * kTileBytes;
    uint32_t bias_of_lane = plan.bias + part * (4 * kTile) + 8 * (lane % 4);
    uint32_t own_weights = plan.weights + owner * kOwnTiles * kTile * plan.weight_bytes + part * (2 * kTile);
#pragma unroll 1
    for (int tile = part; tile < tiles; tile += plan.split) {
      float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};
      uint32_t a[4], b[4], rounded[kTiles][4];
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        load_matrices(b, keys + by_halves + 32 * k);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          load_matrices(a, own + t * kTileBytes + 32 * k);
          multiply_tiles<T>(p[t], a, b);
        }
      }
      if (has_motion) {
        uint32_t low[4];
        load_matrices(b, keys + by_halves + Row<D>::kHigh);
        load_matrices(low, keys + by_halves + Row<D>::kLow);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          load_matrices(a, own + t * kTileBytes + Row<D>::kHigh);
          multiply_tiles<T>(p[t], a, b);
          multiply_tiles<T>(p[t], a, low);
          load_matrices(a, own + t * kTileBytes + Row<D>::kLow);
          multiply_tiles<T>(p[t], a, b);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 bias = read_shared<float2>(bias_of_lane + 32 * n);
#pragma unroll
        for (int i = 0; i < 4 * kTiles; ++i) {
          float& x = p[i / 4][n][i % 4];
          x = exp2_fast(fmaf(x, factor, (i % 2 == 0 ? bias.x : bias.y) - rows[i / 4][i % 4 / 2].x));
        }
      }
      if (wants(kWantsValue)) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          round_tile<T>(rounded[t], p[t], 1.0F);
          store_tile(own_weights + t * kTile * plan.weight_bytes, plan.weight_bytes, rounded[t]);
        }
      }
      if (wants(kWantsScores)) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          load_matrices(b, keys + by_halves + Row<D>::kSecond + 32 * k);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            load_matrices(a, own + t * kTileBytes + Row<D>::kSecond + 32 * k);
            multiply_tiles<T>(ds[t], a, b);
          }
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            // dP is summed as delta was: their difference is exactly 0 where there is one key.
            float& x = ds[t][i / 4][i % 4];
            x = p[t][i / 4][i % 4] * (x - rows[t][i % 4 / 2].y);
          }
          round_tile<T>(rounded[t], ds[t], 1.0F);
          if (wants(kWantsColumns)) {
            store_tile(own_weights + t * kTile * plan.weight_bytes + plan.weight_bytes / 2 - 8, plan.weight_bytes,
                       rounded[t]);
          }
        }
        if (wants(kWantsQuery)) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            load_transposed(b, keys + by_rows + 32 * k);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) multiply_tiles<T>(grad_query[t][k], rounded[t], b);
          }
        }
        if (has_motion && wants(kWantsMotionRows)) {
          load_transposed(b, keys + by_rows + Row<D>::kHigh);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) multiply_tiles<T>(grad_motion[t], rounded[t], b);
        }
      }
      keys += plan.split * kTileBytes;
      bias_of_lane += plan.split * (4 * kTile);
      own_weights += plan.split * (2 * kTile);
    }
  }

  // sums += A^T B over all queries: A some tiles of P or dS, B 16 or 32 columns of what belongs to the queries.
  template <int kCount, int kGroups>
  __device__ __forceinline__ void sum_queries(float (*sums)[kUnitGroups][2][4], uint32_t a_rows,
                                              uint32_t b_rows) const {
#pragma unroll 1
    for (int step = 0; step < plan.query_tiles; ++step) {
      uint32_t a[4], b[kGroups][4];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) load_transposed(b[g], b_rows + 32 * g);
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        load_transposed(a, a_rows + 32 * t);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) multiply_tiles<T>(sums[t][g], a, b[g]);
      }
      a_rows += kTile * plan.weight_bytes;
      b_rows += kTile * Row<D>::kBytes;
    }
  }

  // Gradients of this chunk's keys, a few tiles of keys and 16 or 32 columns at once. Those of keys and values replace
  // the keys and values in shared memory.
  __device__ __forceinline__ void share_columns(int tiles) {
    const bool ones_alone = wants(kWantsKeyBias) && call.channels == kMaxMotionChannels;
    const bool has_motion = (wants(kWantsMotionKey) && call.channels > 0) || (wants(kWantsKeyBias) && !ones_alone);
    const int groups_value = wants(kWantsValue) ? kSteps / kUnitGroups : 0;
    const int groups_key = groups_value + (wants(kWantsKey) ? kSteps / kUnitGroups : 0);
    const int groups_motion = groups_key + (has_motion ? 1 : 0), groups = groups_motion + (ones_alone ? 1 : 0);
    int tile = 0;
#pragma unroll 1
    for (int group = warp;; group += plan.owners * plan.split) {
      for (; group >= groups; group -= groups) tile += plan.unit_tiles;
      if (tile >= tiles) break;
      const int count = min(plan.unit_tiles, tiles - tile);
      const bool of_value = group < groups_value, of_tokens = group < groups_key;
      const uint32_t a_rows = plan.weights + (lane % 8 + lane / 16 * 8) * plan.weight_bytes + lane / 8 % 2 * 16 +
                        tile * (2 * kTile) + (of_value ? 0 : plan.weight_bytes / 2 - 8);
      const int column = of_value     ? Row<D>::kSecond + 32 * kUnitGroups * group
                         : of_tokens ? 32 * kUnitGroups * (group - groups_value)
                                     : (group == groups_motion ? Row<D>::kOnes : Row<D>::kHigh);
      // Behind the 8 columns with the 1 the next row begins: they are read twice.
      const uint32_t b_rows = by_rows + column - (group == groups_motion ? lane / 16 * 16 : 0);
      float sums[kUnitTiles][kUnitGroups][2][4] = {};
      if (!of_tokens) {
        if (count == kUnitTiles) {
          sum_queries<kUnitTiles, 1>(sums, a_rows, b_rows);
        } else if (count == 2) {
          sum_queries<2, 1>(sums, a_rows, b_rows);
        } else {
          sum_queries<1, 1>(sums, a_rows, b_rows);
        }
      } else if (count == kUnitTiles) {
        sum_queries<kUnitTiles, kUnitGroups>(sums, a_rows, b_rows);
      } else if (count == 2) {
        sum_queries<2, kUnitGroups>(sums, a_rows, b_rows);
      } else {
        sum_queries<1, kUnitGroups>(sums, a_rows, b_rows);
      }
#pragma unroll
      for (int t = 0; t < kUnitTiles; ++t) {
        if (t >= count) break;
        if (of_tokens) {
          const uint32_t target = plan.keys + (tile + t) * (kTile * Row<D>::kBytes) + column;
#pragma unroll
          for (int g = 0; g < kUnitGroups; ++g) {
            uint32_t rounded[4];
            round_tile<T>(rounded, sums[t][g], of_value ? 1.0F : call.scale);
            store_tile(target + 32 * g, Row<D>::kBytes, rounded);
          }
        } else {
          leave_numbers(sums[t][0], plan.keys + (tile + t) * (kTile * Row<D>::kBytes), group == groups_motion);
          __syncwarp();
        }
      }
    }
  }

  // The sums of warps that own the same queries, added by the first of them in their order.
  __device__ __forceinline__ void merge_parts() {
    constexpr int kSums = 2 * kSteps + 2;
    const uint32_t own = plan.weights + owner * (1024 * kSums) + 16 * lane;
    for (int other = 1; other < plan.split; ++other) {
#pragma unroll
      for (int t = 0; t < kOwnTiles; ++t) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          const float(&sums)[4] = j < 2 * kSteps ? grad_query[t][min(j / 2, kSteps - 1)][j % 2] : grad_motion[t][j % 2];
          if (part == other) write_shared(own + 512 * (t * kSums + j), float4{sums[0], sums[1], sums[2], sums[3]});
        }
      }
      __syncthreads();
#pragma unroll
      for (int t = 0; t < kOwnTiles; ++t) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          float(&sums)[4] = j < 2 * kSteps ? grad_query[t][min(j / 2, kSteps - 1)][j % 2] : grad_motion[t][j % 2];
          if (part == 0) {
            const float4 more = read_shared<float4>(own + 512 * (t * kSums + j));
            sums[0] += more.x;
            sums[1] += more.y;
            sums[2] += more.z;
            sums[3] += more.w;
          }
        }
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ void store_queries() {
    __syncwarp();
    const int first = owner * (kOwnTiles * kTile);
    if (part == 0 && wants(kWantsQuery)) {
      const uint32_t rows = first * Row<D>::kBytes;
#pragma unroll
      for (int t = 0; t < kOwnTiles; ++t) {
        if (t >= own_tiles) break;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint32_t rounded[4];
          round_tile<T>(rounded, grad_query[t][k], call.scale);
          store_tile(rows + t * (kTile * Row<D>::kBytes) + 32 * k, Row<D>::kBytes, rounded);
        }
      }
      __syncwarp();
      store_tokens<T, D>(call.grad_query, head_of(call.grad_query), first, call.queries, kTile * own_tiles, call.width,
                         rows, lane, kWarpLanes);
    }
    if (!wants(kWantsMotionRows)) return;
    float scale_sum = 0.0F;
    if (part == 0) {
      const uint32_t rows = first * Row<D>::kBytes;
#pragma unroll
      for (int t = 0; t < kOwnTiles; ++t) {
        if (t < own_tiles) leave_numbers(grad_motion[t], rows + t * (kTile * Row<D>::kBytes), false);
      }
      __syncwarp();
      if (wants(kWantsMotionQuery)) {
        store_numbers(call.grad_motion_query, first, call.queries, kTile * own_tiles, motion_scale() / factor_key, rows,
                      lane, kWarpLanes);
      }
      if (wants(kWantsMotionScale)) scale_sum = Base::sum_with_motion(rows, first) / factor_key;
    }
    if (!wants(kWantsMotionScale)) return;
#pragma unroll
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
      scale_sum += __shfl_xor_sync(kWholeWarp, scale_sum, distance);
    }
    if (part == 0 && lane == 0) write_shared(plan.sums + 4 * owner, scale_sum);
    __syncthreads();
    if (threadIdx.x == 0) {
      float sum = 0.0F;
      for (int other = 0; other < plan.owners; ++other) sum += read_shared<float>(plan.sums + 4 * other);
      static_cast<float*>(call.grad_motion_scale.data)[index()] = sum;
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kMaxThreads<D>)
    motion_attention_backward_kernel(const __grid_constant__ AttentionCall call, const __grid_constant__ Plan plan) {
  BackwardBlock<T, D> block(call, plan);
  block.load_queries();
  block.load_keys(0);
  {
    typename BackwardBlock<T, D>::OutRows out;
    block.read_out(out);
    wait_for_copies();
    __syncthreads();
    block.compute_delta(out);
    if (plan.split > 1) __syncthreads();
  }
  const int chunk = kTile * plan.chunk_tiles;
  for (int first = 0; first < call.keys; first += chunk) {
    if (first > 0) {
      __syncthreads();
      block.load_keys(first);
      wait_for_copies();
      __syncthreads();
    }
    const int tiles = min(plan.chunk_tiles, (call.keys - first + kTile - 1) / kTile);
    if (block.own_tiles == kOwnTiles) {
      block.template pass_keys<kOwnTiles>(tiles);
    } else {
      block.template pass_keys<1>(tiles);
    }
    __syncthreads();
    if (block.wants(kWantsColumns | kWantsValue)) {
      block.share_columns(tiles);
      __syncthreads();
      block.store_keys(first);
    }
  }
  if (plan.split > 1) block.merge_parts();
  block.store_queries();
}

}  // namespace
}  // namespace motarfuse
