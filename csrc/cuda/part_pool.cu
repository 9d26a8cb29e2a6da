// part_pool on the GPU: one launch a direction, no atomics, every sum in a fixed order; every token is read once from
// memory, and its gradient written once. docs/kernels/part_pool.md has the derivation.
//
// Forward: a block takes one item and the channels of `lanes` vectors. The masks of a tile of cells go into shared
// memory; a thread keeps the sums of eight parts for its 16 bytes of channels in registers and takes every `groups`-th
// four cells, and more than eight parts are shared out among threads that read the same tokens. The groups' sums are
// added in shared memory as a tree.
#include <algorithm>

#include "../library.h"
#include "launch.h"
#include "part_pool_backward.cuh"

namespace motarfuse {
namespace {

constexpr int kForwardThreads = 128;
// Blocks a multiprocessor must hold: 128 registers a thread. Twelve warps with 168 do where double or strides need
// more, and on sm_80, which has half the multiply-adds a clock.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kMostForwardBlocks = 3;
#else
constexpr int kMostForwardBlocks = 4;
#endif
template <class T, bool kWhole = true>
constexpr int kForwardBlocks = sizeof(T) == 8 || !kWhole ? 3 : kMostForwardBlocks;
constexpr int kPartBits = 3, kPartsAtOnce = 1 << kPartBits;
// Parts that a block takes, by at most four groups of threads.
constexpr int kMaximumPartBits = 2;
constexpr int kPartsOfPass = kPartsAtOnce << kMaximumPartBits;
constexpr int kCellsAtOnce = 4;
// Cells whose masks lie in shared memory.
template <class T>
constexpr int kForwardTile = sizeof(T) == 8 ? 64 : 128;

struct ForwardPlan {
  int lane_bits = 5, part_bits = 0;  // log2 of vectors of channels and of groups of parts that a block takes
  int groups = 1;                    // of threads that take cells, each eight parts of a vector
  int chunks = 1, passes = 1;        // blocks an item, for its channels and for more parts than a block takes
  int pitch = 0;                     // numbers from the masks of a cell to those of the next
  int64_t stride = 0;                // numbers from the cells that a thread takes to its next ones
  uint32_t mass_at = 0, factor_at = 0, bytes = 0;  // of shared memory, behind the masks
};

// kWhole: vectors of tokens and results are whole and may be accessed in words of 16 bytes.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kForwardThreads, kForwardBlocks<T, kWhole>)
    part_pool_forward_kernel(PoolCall call, ForwardPlan plan) {
  using C = Compute<T>;
  constexpr int kCount = kVector<T>, kTile = kForwardTile<T>;
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int pass = block / plan.chunks, chunk = block - pass * plan.chunks;
  const int item = pass / plan.passes, first_part = (pass - item * plan.passes) * kPartsOfPass;
  const int cells = static_cast<int>(call.cells), parts = min(static_cast<int>(call.parts) - first_part, kPartsOfPass);
  const int lane = thread & ((1 << plan.lane_bits) - 1), rest = thread >> plan.lane_bits;
  const int own_parts = (rest & ((1 << plan.part_bits) - 1)) * kPartsAtOnce, group = rest >> plan.part_bits;
  const int channel = ((chunk << plan.lane_bits) + lane) * kCount, count = static_cast<int>(call.channels) - channel;
  const bool busy = own_parts < parts && count > 0;
  const T* tokens = static_cast<const T*>(call.tokens.data) + item * call.tokens.batch + channel * call.tokens.channel;
  const auto load_cell = [&](const T* source, bool exists, uint4& words) {
    words = {0, 0, 0, 0};
    if (exists) words = load_vector(source, kWhole, call.tokens.channel, count);
  };
  const int mass_bits = kPartBits + plan.part_bits;
  C sums[kPartsAtOnce][kCount];
#pragma unroll
  for (int k = 0; k < kPartsAtOnce; ++k) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[k][i] = C(0);
  }

  for (int tile = 0; tile < cells; tile += kTile) {
    const int end = min(cells - tile, kTile);  // cells of the tile
    uint4 words[kCellsAtOnce];
    const T* source = tokens + (tile + group * kCellsAtOnce) * call.tokens.cell;
    if (busy) {  // under way while the masks are computed
#pragma unroll
      for (int i = 0; i < kCellsAtOnce; ++i) {
        load_cell(source + i * call.tokens.cell, group * kCellsAtOnce + i < end, words[i]);
      }
    }
    if (tile > 0) __syncthreads();  // the tile before has been read
    // Cells that do not exist complete the last four.
    for (int cell = thread; cell < (end + kCellsAtOnce - 1) / kCellsAtOnce * kCellsAtOnce; cell += kForwardThreads) {
      const uint32_t row = cell * plan.pitch * sizeof(C);
      if (cell >= end) {
        for (int k = 0; k < parts; ++k) write_shared(static_cast<uint32_t>(row + k * sizeof(C)), C(0));
        continue;
      }
      const auto give = [&](int part, C mask) {
        write_shared(static_cast<uint32_t>(row + (part - first_part - 1) * sizeof(C)), mask);
      };
      with_type<C>(call.logits.data, call.logits.type, item * call.logits.batch + (tile + cell) * call.logits.cell,
                   [&](const auto* logits) {
                     softmax_of_cell<C>(logits, call.logits.part, static_cast<int>(call.parts) + 1, first_part + 1,
                                        first_part + parts + 1, give);
                   });
    }
    __syncthreads();
    // A thread adds up the mass of one part, over some of the cells.
    if (const int mass_part = thread & ((1 << mass_bits) - 1); mass_part < parts) {
      const uint32_t at = static_cast<uint32_t>(plan.mass_at + thread * sizeof(C));
      C mass = tile > 0 ? read_shared<C>(at) : C(0);
      for (int cell = thread >> mass_bits; cell < end; cell += kForwardThreads >> mass_bits) {
        mass += read_shared<C>((cell * plan.pitch + mass_part) * sizeof(C));
      }
      write_shared(at, mass);
    }
    if (!busy) continue;
    for (int cell = group * kCellsAtOnce; cell < end; cell += plan.groups * kCellsAtOnce) {
      source += plan.stride;
#pragma unroll
      for (int i = 0; i < kCellsAtOnce; ++i) {
        C x[kCount], masks[kPartsAtOnce];
        widen<T>(words[i], x);
        load_cell(source + i * call.tokens.cell, cell + plan.groups * kCellsAtOnce + i < end, words[i]);
        read_numbers(((cell + i) * plan.pitch + own_parts) * sizeof(C), masks);
#pragma unroll
        for (int k = 0; k < kPartsAtOnce; ++k) {
#pragma unroll
          for (int c = 0; c < kCount; ++c) sums[k][c] += masks[k] * x[c];
        }
      }
    }
  }

  __syncthreads();
  if (thread < parts) {
    C total = C(0);
    for (int other = thread; other < kForwardThreads; other += 1 << mass_bits) {
      total += read_shared<C>(static_cast<uint32_t>(plan.mass_at + other * sizeof(C)));
    }
    write_shared(static_cast<uint32_t>(plan.factor_at + thread * sizeof(C)), C(1) / pool_divisor(total));
    if (chunk == 0) {
      const int64_t row = item * call.parts + first_part + thread;
      write_as<C>(call.rows.mass, call.rows.mass_type, row, pool_mass(total, call.cells));
      if (call.total != nullptr) static_cast<C*>(call.total)[row] = total;
    }
  }
  // Word w of thread t lies at 16 (64 w + t), over the masks, which have been read.
  constexpr uint32_t kWordsApart = 16 * kForwardThreads / 2, kPartsApart = kWordsApart * kCount * sizeof(C) / 16;
  for (int half = plan.groups / 2; half > 0; half /= 2) {
    const int threads = half << (plan.lane_bits + plan.part_bits);
    if (group >= half && group < 2 * half) {
#pragma unroll
      for (int k = 0; k < kPartsAtOnce; ++k) {
        write_numbers(k * kPartsApart + 16 * (thread - threads), sums[k], kWordsApart);
      }
    }
    __syncthreads();
    if (group < half) {
#pragma unroll
      for (int k = 0; k < kPartsAtOnce; ++k) {
        C others[kCount];
        read_numbers(k * kPartsApart + 16 * thread, others, kWordsApart);
#pragma unroll
        for (int c = 0; c < kCount; ++c) sums[k][c] += others[c];
      }
    }
    __syncthreads();
  }
  if (plan.groups == 1) __syncthreads();  // the factors are there
  if (group != 0 || !busy) return;
  const int64_t first_row = (item * call.parts + first_part + own_parts) * call.channels + channel;
  T* pooled = static_cast<T*>(call.rows.pooled) + first_row;
  C* exact = call.exact != nullptr ? static_cast<C*>(call.exact) + first_row : nullptr;
#pragma unroll
  for (int k = 0; k < kPartsAtOnce; ++k, pooled += call.channels) {
    if (own_parts + k >= parts) break;
    const C factor = read_shared<C>(static_cast<uint32_t>(plan.factor_at + (own_parts + k) * sizeof(C)));
#pragma unroll
    for (int c = 0; c < kCount; ++c) sums[k][c] *= factor;
    store_vector(pooled, kWhole, 1, count, sums[k]);
    if (exact == nullptr) continue;
    store_numbers(exact, kWhole, count, sums[k]);
    exact += call.channels;
  }
}

// Vectors of channels may be accessed as words of 16 bytes, or nobody wants them.
template <class T>
bool packs(const TokensView& view) {
  if (view.data == nullptr) return true;
  return view.channel == 1 && view.batch % kVector<T> == 0 && view.cell % kVector<T> == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// Rows of the results; null pointers are multiples of 16.
template <class T>
bool packs_rows(const PoolCall& call) {
  return call.channels % kVector<T> == 0 && reinterpret_cast<uintptr_t>(call.rows.pooled) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(call.exact) % 16 == 0;
}

int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

unsigned checked_blocks(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= kMaximumBlocks, "part_pool: a launch would need ", blocks, " blocks, at most ",
                  kMaximumBlocks, " are possible; split the batch");
  return static_cast<unsigned>(blocks);
}

// Lanes that make the whole launch shortest: waves of blocks, each as long as its lanes and its masks, which cost as
// much as five lanes do.
template <class T>
ForwardPlan plan_forward(const PoolCall& call, int multiprocessors) {
  using C = Compute<T>;
  ForwardPlan plan;
  plan.passes = static_cast<int>(divide_up(call.parts, kPartsOfPass));
  while (plan.part_bits < kMaximumPartBits && kPartsAtOnce << plan.part_bits < call.parts) ++plan.part_bits;
  const int64_t vectors = std::max<int64_t>(divide_up(call.channels, kVector<T>), 1);
  const int64_t slots = int64_t{std::max(multiprocessors, 1)} * kForwardBlocks<T>;
  const auto cost = [&](int bits) {
    return divide_up(call.batch * plan.passes * divide_up(vectors, 1 << bits), slots) * ((1 << bits) + 5);
  };
  for (int bits = 4; bits >= 3; --bits) {
    if (cost(bits) < cost(plan.lane_bits)) plan.lane_bits = bits;
  }
  plan.chunks = static_cast<int>(divide_up(vectors, 1 << plan.lane_bits));
  plan.groups = kForwardThreads >> (plan.lane_bits + plan.part_bits);
  plan.stride = plan.groups * kCellsAtOnce * call.tokens.cell;
  // Eight lanes that access 16 bytes each of a cell of their own meet no bank twice.
  plan.pitch = (kPartsAtOnce << plan.part_bits) + 16 / static_cast<int>(sizeof(C));
  const size_t masks = kForwardTile<T> * plan.pitch * sizeof(C);
  const size_t sums = plan.groups > 1 ? kForwardThreads / 2 * kPartsAtOnce * kVector<T> * sizeof(C) : 0;
  plan.mass_at = static_cast<uint32_t>(std::max(masks, sums));
  plan.factor_at = static_cast<uint32_t>(plan.mass_at + kForwardThreads * sizeof(C));
  plan.bytes = static_cast<uint32_t>(plan.factor_at + kPartsOfPass * sizeof(C));
  return plan;
}

template <class T>
void launch_forward(const PoolCall& call, int32_t device, cudaStream_t stream) {
  const ForwardPlan plan = plan_forward<T>(call, num_multiprocessors(device));
  const unsigned blocks = checked_blocks(call.batch * plan.passes * plan.chunks);
  if (packs<T>(call.tokens) && packs_rows<T>(call)) {
    part_pool_forward_kernel<T, true><<<blocks, kForwardThreads, plan.bytes, stream>>>(call, plan);
  } else {
    part_pool_forward_kernel<T, false><<<blocks, kForwardThreads, plan.bytes, stream>>>(call, plan);
  }
  check_launch("part_pool_forward_kernel");
}

// The tile that makes the whole launch shortest: waves of blocks, each as long as its cells and what it does before
// them, which costs as much as eight cells. A block has as many channels in shared memory as fit.
template <class T>
BackwardPlan plan_backward(const PoolCall& call, int multiprocessors, const SharedMemory& memory) {
  using C = Compute<T>;
  BackwardPlan best;
  int64_t best_cost = 0;
  const int64_t vectors = std::max<int64_t>(divide_up(call.channels, kVector<T>), 1);
  const int64_t steps = divide_up(vectors, kDotVectors<T>);
  for (int blocks = kBackwardBlocks; blocks > 0 && best.tile == 0; --blocks) {
    const int64_t limit = std::min(memory.block, memory.multiprocessor / blocks - memory.reserved);
    const int64_t slots = int64_t{std::max(multiprocessors, 1)} * blocks;
    for (int tile = 256; tile >= 2 * kGradientCells; tile /= 2) {
      if (tile / 2 >= call.cells && tile > 2 * kGradientCells) continue;
      BackwardPlan plan;
      plan.tile = tile;
      plan.tiles = static_cast<int>(divide_up(call.cells, tile));
      const int64_t units = divide_up(std::min<int64_t>(call.cells, tile), kDotCells<T>);
      plan.slices = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(kBackwardWarps / units, steps)));
      int64_t chunk_steps = steps;
      const auto fits = [&] {
        plan.chunk = static_cast<int>(std::min(chunk_steps * kDotVectors<T>, vectors));
        return plan.place(call.parts, sizeof(C)) && plan.bytes <= limit;
      };
      while (chunk_steps > 0 && !fits()) {
        if (plan.slices > 1) {
          plan.slices /= 2;
        } else {
          chunk_steps /= 2;
        }
      }
      if (chunk_steps == 0) continue;
      const int64_t cost = divide_up(call.batch * plan.tiles, slots) * (tile + 8);
      if (best.tile == 0 || cost < best_cost) {
        best = plan;
        best_cost = cost;
      }
    }
  }
  STD_TORCH_CHECK(best.tile > 0, "part_pool: the masks and gradients of ", call.parts,
                  " parts do not fit into the shared memory of a block of this device, ", memory.block, " bytes");
  return best;
}

template <class T>
void launch_backward(const PoolCall& call, int32_t device, cudaStream_t stream) {
  const SharedMemory memory = shared_memory_of(device);
  const BackwardPlan plan = plan_backward<T>(call, num_multiprocessors(device), memory);
  const unsigned blocks = checked_blocks(call.batch * plan.tiles);
  if (packs<T>(call.tokens) && packs<T>(call.grad_tokens) && packs_rows<T>(call)) {
    allow_shared_memory(&part_pool_backward_kernel<T, true>, memory);
    part_pool_backward_kernel<T, true><<<blocks, kBackwardThreads, plan.bytes, stream>>>(call, plan);
  } else {
    allow_shared_memory(&part_pool_backward_kernel<T, false>, memory);
    part_pool_backward_kernel<T, false><<<blocks, kBackwardThreads, plan.bytes, stream>>>(call, plan);
  }
  check_launch("part_pool_backward_kernel");
}

// Kernels count cells, channels and parts up to a step beyond the last.
void check_counts(const PoolCall& call) {
  constexpr int64_t kMost = (int64_t{1} << 30) - 1;
  STD_TORCH_CHECK(call.cells <= kMost && call.channels <= kMost && call.parts <= kMost,
                  "part_pool: at most 2^30 - 1 cells, channels and parts");
}

}  // namespace

PoolResults part_pool_forward_cuda(const Tensor& tokens, const Tensor& part_logits, bool save_statistics) {
  const int32_t device = tokens.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  PoolCall call = pool_call(tokens, part_logits);
  check_counts(call);
  PoolResults results = allocate_pooled(call, tokens, save_statistics);
  if (call.batch == 0 || call.parts == 0) return results;
  if (call.cells == 0) {
    std::apply([](auto&... result) { (torch::stable::zero_(result), ...); }, results);
    return results;
  }
  dispatch_float(call.tokens.type,
                 [&](auto t) { launch_forward<decltype(t)>(call, device, current_stream(device)); });
  return results;
}

PoolGradients part_pool_backward_cuda(const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_mass,
                                      const Tensor& tokens, const Tensor& part_logits, const Tensor& pooled,
                                      const Tensor& total, bool needs_tokens, bool needs_logits) {
  const int32_t device = tokens.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  PoolCall call = pool_call(tokens, part_logits);
  check_counts(call);
  take_pooled_gradients(call, tokens, grad_pooled, grad_mass, pooled, total);
  STD_TORCH_CHECK(call.rows.pooled == nullptr || call.rows.pooled_type == call.tokens.type,
                  "part_pool: the CUDA backward takes a grad_pooled of the tokens' dtype");
  PoolGradients gradients = allocate_pool_gradients(call, tokens, part_logits, needs_tokens, needs_logits);
  auto& [grad_tokens, grad_logits] = gradients;
  // Nothing comes back through what has no part, or through a result without a gradient.
  const bool tokens_are_zero = call.parts == 0 || call.rows.pooled == nullptr;
  if (needs_tokens && tokens_are_zero) {
    torch::stable::zero_(grad_tokens);
    call.grad_tokens = {};
  }
  if (needs_logits && call.parts == 0) {
    torch::stable::zero_(grad_logits);
    call.grad_logits = {};
  }
  if (call.batch * call.cells == 0 || (call.grad_tokens.data == nullptr && call.grad_logits.data == nullptr)) {
    return gradients;
  }
  dispatch_float(call.tokens.type,
                 [&](auto t) { launch_backward<decltype(t)>(call, device, current_stream(device)); });
  return gradients;
}

}  // namespace motarfuse
