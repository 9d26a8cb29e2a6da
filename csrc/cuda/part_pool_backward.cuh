// part_pool's backward: a block takes a tile of an item's cells. It keeps in shared memory, for all parts, the rows of
// dpooled (in chunks of channels where they are large) and the masks of its cells, and then
//   1. dots: <dpooled_k, x_u>, which reads the tokens; a warp takes some cells and all channels, or a slice of them
//      where the tile has fewer cells than the warps could take,
//   2. dx_u = sum_k M_k(u) / D_k dpooled_k, which does not need the tokens; a warp takes eight cells, so that what it
//      reads of dpooled serves all of them, and a lane 16 bytes of channels,
//   3. the logits' gradient of a cell, a thread a cell.
// Half types form their dots on tensor cores: products of two half numbers are exact in float, and a float addition of
// its own every 32 channels keeps the sums as exact as multiply-adds would.
//
// Shared memory in bytes, with K parts, n cells of a tile, s slices and C the type computed in:
//   K pitch                          dpooled, pitch = the chunk's bytes, padded to 64 beyond a multiple of 128
//   + n ((2 + s) K + 1) |C|          masks with the background, M_k / D_k, dots of every slice
//   + 2 K |C|                        1 / D_k, q_k
#pragma once

#include "part_pool_block.cuh"

namespace motarfuse {
namespace {

constexpr int kBackwardThreads = 256;
constexpr int kBackwardWarps = kBackwardThreads / kWarpLanes;
// Blocks a multiprocessor must hold: 128 registers a thread.
constexpr int kBackwardBlocks = 2;

// Cells that a warp takes at once for dots, and vectors of channels in a step of them.
template <class T>
constexpr int kDotCells = sizeof(T) == 2 ? 16 : 4;
template <class T>
constexpr int kDotVectors = sizeof(T) == 2 ? 4 : kWarpLanes;
// Cells that a warp takes at once for the tokens' gradient, of which a tile is a multiple.
constexpr int kGradientCells = 8;

struct BackwardPlan {
  int tile = 0, tiles = 0;            // cells of a block, blocks an item
  int chunk = 0, slices = 1;          // vectors of channels in shared memory at once, and parts of them for dots
  uint32_t pitch = 0, masks_at = 0, weights_at = 0, dots_at = 0, factors_at = 0, bytes = 0;

  // Where things lie in shared memory; false where that is more than an offset can say.
  bool place(int64_t parts, int64_t size) {
    const int64_t row = int64_t{chunk} * 16, padded = row + ((64 - row) % 128 + 128) % 128;
    const int64_t masks = parts * padded, weights = masks + (parts + 1) * tile * size;
    const int64_t dots = weights + parts * tile * size, factors = dots + parts * tile * slices * size;
    const int64_t end = factors + 2 * parts * size;
    if (end >= int64_t{1} << 30) return false;
    pitch = static_cast<uint32_t>(padded);
    masks_at = static_cast<uint32_t>(masks);
    weights_at = static_cast<uint32_t>(weights);
    dots_at = static_cast<uint32_t>(dots);
    factors_at = static_cast<uint32_t>(factors);
    bytes = static_cast<uint32_t>(end);
    return true;
  }
};

template <class C>
__device__ __forceinline__ C sum_over_warp(C value) {
#pragma unroll
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

// 32 sums over a warp, of which lane l receives number l: every step halves the numbers a lane still has.
template <class C>
__device__ __forceinline__ C sum_of_lane(C (&values)[kWarpLanes]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int half = kWarpLanes / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < kWarpLanes / 2; ++i) {
      if (i >= half) break;
      const C given = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, given, half);
    }
  }
  return values[0];
}

// kWhole: vectors of tokens, of their gradient, and of dpooled and pooled are whole and may be accessed in words of 16
// bytes.
template <class T, bool kWhole>
struct PoolBackwardBlock {
  using C = Compute<T>;
  static constexpr int kCount = kVector<T>;

  const PoolCall& call;
  const BackwardPlan& plan;
  int thread, warp, lane, item, first, cells, parts, channels;

  __device__ __forceinline__ PoolBackwardBlock(const PoolCall& call, const BackwardPlan& plan)
      : call(call), plan(plan), thread(threadIdx.x), warp(thread / kWarpLanes), lane(thread % kWarpLanes) {
    item = static_cast<int>(blockIdx.x) / plan.tiles;
    first = (static_cast<int>(blockIdx.x) - item * plan.tiles) * plan.tile;
    cells = min(static_cast<int>(call.cells) - first, plan.tile);
    parts = static_cast<int>(call.parts);
    channels = static_cast<int>(call.channels);
  }

  __device__ __forceinline__ uint32_t mask_at(int channel, int cell) const {
    return static_cast<uint32_t>(plan.masks_at + (channel * plan.tile + cell) * sizeof(C));
  }
  __device__ __forceinline__ uint32_t weight_at(int part, int cell) const {
    return static_cast<uint32_t>(plan.weights_at + (part * plan.tile + cell) * sizeof(C));
  }
  __device__ __forceinline__ uint32_t dot_at(int slice, int part, int cell) const {
    return static_cast<uint32_t>(plan.dots_at + ((slice * parts + part) * plan.tile + cell) * sizeof(C));
  }
  __device__ __forceinline__ uint32_t inverse_at(int part) const {
    return static_cast<uint32_t>(plan.factors_at + part * sizeof(C));
  }
  __device__ __forceinline__ uint32_t constant_at(int part) const { return inverse_at(parts + part); }

  __device__ __forceinline__ C total_of(int part) const {
    return static_cast<const C*>(call.total)[int64_t{item} * parts + part];
  }

  __device__ __forceinline__ void divide() const {
    for (int part = thread; part < parts; part += kBackwardThreads) {
      write_shared(inverse_at(part), C(1) / pool_divisor(total_of(part)));
    }
  }

  // Vectors of a row that a lane has under way at once.
  static constexpr int kRowSteps = sizeof(T) == 2 ? 3 : 4;

  // The rows of dpooled from vector `begin` on, and their share of <dpooled_k, pooled_k>; after the last of them q_k.
  __device__ __forceinline__ void read_rows(int begin, int vectors, bool last) const {
    const bool wants_constant = call.grad_logits.data != nullptr;
    for (int part = warp; part < parts; part += kBackwardWarps) {
      const int64_t row = int64_t{item} * parts + part;
      C product = C(0);
      for (int first_vector = lane; call.rows.pooled != nullptr && first_vector < vectors;
           first_vector += kRowSteps * kWarpLanes) {
        uint4 words[kRowSteps];
        C pooled[kRowSteps][kCount];
#pragma unroll
        for (int s = 0; s < kRowSteps; ++s) {
          const int vector = first_vector + s * kWarpLanes;
          const int channel = (begin + vector) * kCount, count = channels - channel;
          const int64_t offset = row * channels + channel;
          words[s] = {0, 0, 0, 0};
#pragma unroll
          for (int i = 0; i < kCount; ++i) pooled[s][i] = C(0);
          if (vector >= vectors) continue;
          words[s] = load_vector(static_cast<const T*>(call.rows.pooled) + offset, kWhole, 1, count);
          if (wants_constant) load_numbers(static_cast<const C*>(call.exact) + offset, kWhole, count, pooled[s]);
        }
#pragma unroll
        for (int s = 0; s < kRowSteps; ++s) {
          const int vector = first_vector + s * kWarpLanes;
          if (vector < vectors) write_shared(static_cast<uint32_t>(part * plan.pitch + vector * 16), words[s]);
          C gradient[kCount];
          widen<T>(words[s], gradient);
#pragma unroll
          for (int i = 0; i < kCount; ++i) product += gradient[i] * pooled[s][i];
        }
      }
      if (!wants_constant) continue;
      product = sum_over_warp(product);
      if (lane != 0) continue;
      if (begin > 0) product += read_shared<C>(constant_at(part));
      if (last) {
        const C grad_mass =
            call.rows.mass != nullptr ? read_as<C>(call.rows.mass, call.rows.mass_type, row) : C(0);
        product = pool_constant(product, total_of(part), grad_mass, call.cells);
      }
      write_shared(constant_at(part), product);
    }
  }

  __device__ __forceinline__ void write_masks() const {
    for (int cell = thread; cell < cells; cell += kBackwardThreads) {
      const auto give = [&](int channel, C mask) {
        write_shared(mask_at(channel, cell), mask);
        if (channel > 0) write_shared(weight_at(channel - 1, cell), mask * read_shared<C>(inverse_at(channel - 1)));
      };
      with_type<C>(call.logits.data, call.logits.type, item * call.logits.batch + (first + cell) * call.logits.cell,
                   [&](const auto* logits) {
                     softmax_of_cell<C>(logits, call.logits.part, parts + 1, 0, parts + 1, give);
                   });
    }
  }

  __device__ __forceinline__ void leave_dot(int slice, int part, int cell, bool add, C value) const {
    if (part >= parts) return;
    const uint32_t at = dot_at(slice, part, cell);
    write_shared(at, add ? read_shared<C>(at) + value : value);
  }

  // <dpooled_k, x_u> of a chunk's channels, added to what the chunks before gave.
  __device__ __forceinline__ void add_dots(int begin, int vectors) const {
    const int steps = (vectors + kDotVectors<T> - 1) / kDotVectors<T>;
    const int units = (cells + kDotCells<T> - 1) / kDotCells<T> * plan.slices;
    for (int unit = warp; unit < units; unit += kBackwardWarps) {
      const int cell = unit / plan.slices * kDotCells<T>, slice = unit % plan.slices;
      const int from = steps * slice / plan.slices, to = steps * (slice + 1) / plan.slices;
      if constexpr (sizeof(T) == 2) {
        multiply_tiles(begin, vectors, cell, slice, from, to);
      } else {
        multiply_cells(begin, vectors, cell, slice, from, to);
      }
    }
  }

  // 16 cells by 8 parts by 32 channels a step. Which channels meet in a product does not matter as long as both sides
  // take the same, so a lane's fragments are 16 bytes of a row on both.
  __device__ __forceinline__ void multiply_tiles(int begin, int vectors, int cell, int slice, int from, int to) const {
    constexpr int kSteps = 4, kGroups = 4;  // steps whose tokens are under way at once; groups of eight parts
    const int row = lane / 4, column = lane % 4;
    const T* source = static_cast<const T*>(call.tokens.data) + item * call.tokens.batch +
                      (first + cell + row) * call.tokens.cell;
    for (int first_part = 0; first_part < parts; first_part += 8 * kGroups) {
      float sums[kGroups][4];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[g][i] = 0.0F;
      }
      for (int step = from; step < to; step += kSteps) {
        uint4 x[kSteps][2];
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int vector = (step + s) * kDotVectors<T> + column;
          const int channel = (begin + vector) * kCount, count = channels - channel;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            x[s][r] = {0, 0, 0, 0};
            if (step + s < to && vector < vectors && cell + row + 8 * r < cells) {
              x[s][r] = load_vector(source + 8 * r * call.tokens.cell + channel * call.tokens.channel,
                                    kWhole, call.tokens.channel, count);
            }
          }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (step + s >= to) break;
          const int vector = (step + s) * kDotVectors<T> + column;
          const uint4 &a = x[s][0], &b = x[s][1];
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            if (first_part + 8 * g >= parts) break;
            const int part = first_part + 8 * g + row;
            uint4 words = {0, 0, 0, 0};
            if (part < parts && vector < vectors) words = read_shared<uint4>(part * plan.pitch + vector * 16);
            float products[4] = {0.0F, 0.0F, 0.0F, 0.0F};
            multiply_add<T>(products, {a.x, b.x, a.y, b.y}, words.x, words.y);
            multiply_add<T>(products, {a.z, b.z, a.w, b.w}, words.z, words.w);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[g][i] += products[i];
          }
        }
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          leave_dot(slice, first_part + 8 * g + 2 * column + i % 2, cell + row + i / 2 * 8, begin > 0, sums[g][i]);
        }
      }
    }
  }

  // Four cells by eight parts, a vector of channels a lane: 32 sums, one for each lane in the end.
  __device__ __forceinline__ void multiply_cells(int begin, int vectors, int cell, int slice, int from, int to) const {
    constexpr int kCells = kDotCells<T>, kParts = kWarpLanes / kCells;
    const T* source =
        static_cast<const T*>(call.tokens.data) + item * call.tokens.batch + (first + cell) * call.tokens.cell;
    for (int first_part = 0; first_part < parts; first_part += kParts) {
      C sums[kWarpLanes];
#pragma unroll
      for (int i = 0; i < kWarpLanes; ++i) sums[i] = C(0);
      for (int step = from; step < to; ++step) {
        const int vector = step * kDotVectors<T> + lane;
        if (vector >= vectors) break;
        const int channel = (begin + vector) * kCount, count = channels - channel;
        C x[kCells][kCount];
        uint4 words[kCells];
#pragma unroll
        for (int r = 0; r < kCells; ++r) {
          words[r] = {0, 0, 0, 0};
          if (cell + r < cells) {
            words[r] = load_vector(source + r * call.tokens.cell + channel * call.tokens.channel,
                                   kWhole, call.tokens.channel, count);
          }
        }
#pragma unroll
        for (int r = 0; r < kCells; ++r) widen<T>(words[r], x[r]);
#pragma unroll
        for (int k = 0; k < kParts; ++k) {
          if (first_part + k < parts) {
            C gradient[kCount];
            read_numbers((first_part + k) * plan.pitch + vector * 16, gradient);
#pragma unroll
            for (int r = 0; r < kCells; ++r) {
#pragma unroll
              for (int i = 0; i < kCount; ++i) sums[k * kCells + r] += gradient[i] * x[r][i];
            }
          }
        }
      }
      const C sum = sum_of_lane(sums);
      leave_dot(slice, first_part + lane / kCells, cell + lane % kCells, begin > 0, sum);
    }
  }

  __device__ __forceinline__ void write_tokens_gradient(int begin, int vectors) const {
    const int steps = (vectors + kWarpLanes - 1) / kWarpLanes;
    const int units = (cells + kGradientCells - 1) / kGradientCells * steps;
    const TokensView& view = call.grad_tokens;
    for (int unit = warp; unit < units; unit += kBackwardWarps) {
      const int cell = unit / steps * kGradientCells, vector = unit % steps * kWarpLanes + lane;
      if (vector >= vectors) continue;
      C sums[kGradientCells][kCount];
#pragma unroll
      for (int r = 0; r < kGradientCells; ++r) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[r][i] = C(0);
      }
#pragma unroll 2
      for (int part = 0; part < parts; ++part) {
        C gradient[kCount], weights[kGradientCells];
        widen<T>(read_shared<uint4>(part * plan.pitch + vector * 16), gradient);
        read_numbers(weight_at(part, cell), weights);
#pragma unroll
        for (int r = 0; r < kGradientCells; ++r) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) sums[r][i] += weights[r] * gradient[i];
        }
      }
      const int channel = (begin + vector) * kCount, count = channels - channel;
      T* target = static_cast<T*>(view.data) + item * view.batch + (first + cell) * view.cell + channel * view.channel;
#pragma unroll
      for (int r = 0; r < kGradientCells; ++r) {
        if (cell + r >= cells) break;
        store_vector(target + r * view.cell, kWhole, view.channel, count, sums[r]);
      }
    }
  }

  // dM_k of a cell.
  __device__ __forceinline__ C mask_gradient(int part, int cell) const {
    C dot = C(0);
    if (call.rows.pooled != nullptr) {
      for (int slice = 0; slice < plan.slices; ++slice) dot += read_shared<C>(dot_at(slice, part, cell));
    }
    return dot * read_shared<C>(inverse_at(part)) - read_shared<C>(constant_at(part));
  }

  __device__ __forceinline__ void write_logits_gradient() const {
    const LogitsView& view = call.grad_logits;
    for (int cell = thread; cell < cells; cell += kBackwardThreads) {
      C mean = C(0);
      for (int part = 0; part < parts; ++part) {
        mean += read_shared<C>(mask_at(part + 1, cell)) * mask_gradient(part, cell);
      }
      with_type<C>(view.data, view.type, item * view.batch + (first + cell) * view.cell, [&](auto* target) {
        using L = std::remove_reference_t<decltype(*target)>;
        for (int channel = 0; channel <= parts; ++channel) {
          const C mask = read_shared<C>(mask_at(channel, cell));
          const C gradient = channel > 0 ? mask_gradient(channel - 1, cell) : C(0);
          target[channel * view.part] = static_cast<L>(softmax_gradient(mask, gradient, mean));
        }
      });
    }
  }

  __device__ __forceinline__ void run() const {
    const int vectors = (channels + kCount - 1) / kCount;
    const bool with_pooled = call.rows.pooled != nullptr;
    divide();
    // At least once: q_k is wanted where there are no channels or no dpooled too.
    for (int begin = 0; begin == 0 || begin < vectors; begin += plan.chunk) {
      const int count = min(vectors - begin, plan.chunk);
      if (begin > 0) __syncthreads();  // the chunk before has been read
      read_rows(begin, count, begin + plan.chunk >= vectors);
      __syncthreads();
      if (begin == 0) {
        write_masks();
        __syncthreads();
      }
      if (with_pooled && call.grad_logits.data != nullptr) add_dots(begin, count);
      if (with_pooled && call.grad_tokens.data != nullptr) write_tokens_gradient(begin, count);
    }
    if (call.grad_logits.data == nullptr) return;
    __syncthreads();
    write_logits_gradient();
  }
};

template <class T, bool kWhole>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks)
    part_pool_backward_kernel(PoolCall call, BackwardPlan plan) {
  PoolBackwardBlock<T, kWhole>(call, plan).run();
}

}  // namespace
}  // namespace motarfuse
