// What motion_warp's forward and backward share on the GPU: part motions in shared memory, the pass over a cell's part
// logits that gives its displacement, four cells and their shares in twelve bytes, and channels in words of 16 bytes.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "../library.h"
#include "../motion_warp_call.h"
#include "access.h"
#include "launch.h"
#include "mma.cuh"

namespace motarfuse {

constexpr int kBlockThreads = 256;
constexpr int kPartsAtOnce = 8;     // logits that a thread has under way
constexpr int kPostureNumbers = 12;  // of a part: (p, A) of the source, (q, B) of the target
// What a cell's place in 16 bits, and shared memory for all parts, allow on every device.
constexpr int64_t kMaxCells = 4096, kMaxParts = 256, kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

// Channels that lie one after the other are accessed in words of 16 bytes, others one by one.
template <class T>
constexpr int kWordChannels = 16 / sizeof(T);

template <class C>
struct alignas(2 * sizeof(C)) Vector2 {
  C x, y;
};

template <class V>
__device__ __forceinline__ V read_entry(uint32_t first, int index) {
  return read_shared<V>(first + index * static_cast<uint32_t>(sizeof(V)));
}

template <class V>
__device__ __forceinline__ void write_entry(uint32_t first, int index, V value) {
  write_shared(first + index * static_cast<uint32_t>(sizeof(V)), value);
}

template <class C>
struct alignas(16) SharedMotion {
  PartMotion<C> motion;
};

MOTARFUSE_HOST_DEVICE uint32_t align_shared(uint32_t bytes) { return (bytes + 31) / 32 * 32; }

// Motions, and behind them the postures that they are made of: at the start of every block's shared memory.
template <class C>
MOTARFUSE_HOST_DEVICE uint32_t motion_bytes(int parts) {
  return align_shared(parts * (sizeof(SharedMotion<C>) + kPostureNumbers * sizeof(C)));
}

template <class C>
__device__ __forceinline__ C read_posture_number(const PosturesView& view, int64_t batch, int part, int number) {
  const bool target = number >= kPostureNumbers / 2;
  const int of_posture = target ? number - kPostureNumbers / 2 : number;
  const PostureView& keypoints = target ? view.target_keypoints : view.source_keypoints;
  const PostureView& affines = target ? view.target_affines : view.source_affines;
  const bool is_keypoint = of_posture < 2;
  const PostureView& chosen = is_keypoint ? keypoints : affines;
  const int row = is_keypoint ? 0 : (of_posture - 2) / 2, column = of_posture % 2;
  return read_as<C>(chosen.data, chosen.type, chosen.at(batch, part, row, column));
}

template <class C>
__device__ __forceinline__ PosturePair<C> read_shared_postures(int parts, int part) {
  const uint32_t first = parts * sizeof(SharedMotion<C>) + part * (kPostureNumbers * sizeof(C));
  const auto number = [&](int i) { return read_shared<C>(first + i * sizeof(C)); };
  PosturePair<C> pair;
  pair.source_x = number(0);
  pair.source_y = number(1);
  pair.target_x = number(6);
  pair.target_y = number(7);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    pair.source_affine[c] = number(2 + c);
    pair.target_affine[c] = number(8 + c);
  }
  return pair;
}

template <class C>
__device__ __forceinline__ PartMotion<C> read_motion(int part) {
  return read_shared<SharedMotion<C>>(part * sizeof(SharedMotion<C>)).motion;
}

// Every part's motion into shared memory. A thread reads one number, so that all are under way at once.
template <class C>
__device__ __forceinline__ void prepare_motions(const PosturesView& view, int64_t batch, int parts) {
  const uint32_t postures = parts * sizeof(SharedMotion<C>);
  for (int i = threadIdx.x; i < kPostureNumbers * parts; i += blockDim.x) {
    const int part = i / kPostureNumbers;
    write_shared(postures + i * static_cast<uint32_t>(sizeof(C)),
                 read_posture_number<C>(view, batch, part, i - part * kPostureNumbers));
  }
  __syncthreads();
  for (int part = threadIdx.x; part < parts; part += blockDim.x) {
    write_shared(part * sizeof(SharedMotion<C>), SharedMotion<C>{part_motion(read_shared_postures<C>(parts, part))});
  }
  __syncthreads();
}

// function(L{}) with the type of logits that are computed in C.
template <class C, class F>
__device__ __forceinline__ void with_logits(ScalarType type, const F& function) {
  if constexpr (std::is_same_v<C, double>) {
    function(double{});
  } else if (type == ScalarType::Half) {
    function(Half{});
  } else if (type == ScalarType::BFloat16) {
    function(BFloat16{});
  } else {
    function(float{});
  }
}

MOTARFUSE_HOST_DEVICE int64_t cell_offset(const LogitsView& view, int64_t batch, int cell) {
  return batch * view.batch + cell * view.cell;
}

template <class C>
struct CellSoftmax {
  C origin, sum, inverse_sum;

  __device__ __forceinline__ C mask(C logit) const { return std::exp(logit - origin) * inverse_sum; }
};

// Sums over a cell's channels, relative to the largest logit so far; part 0 is the background.
template <class C>
struct BackgroundSums {
  C background;

  __device__ __forceinline__ void start(C e) { background = e; }
  __device__ __forceinline__ void rescale(C factor) { background *= factor; }
  __device__ __forceinline__ void add(int, C) {}
};

template <class C>
struct DisplacementSums {
  C cell_x, cell_y, background, x, y;

  __device__ __forceinline__ void start(C e) {
    background = e;
    x = y = C(0);
  }
  __device__ __forceinline__ void rescale(C factor) {
    background *= factor;
    x *= factor;
    y *= factor;
  }
  __device__ __forceinline__ void add(int part, C e) {
    const PartMotion<C> motion = read_motion<C>(part - 1);
    x += e * motion.displacement_x(cell_x, cell_y);
    y += e * motion.displacement_y(cell_x, cell_y);
  }
};

// Reads every logit of a cell once. All of them -inf: the sum is 0 and its inverse infinite, so that masks are NaN.
template <class L, class C, class S>
__device__ __forceinline__ CellSoftmax<C> pass_channels(const LogitsView& view, int64_t offset, int parts, S& sums) {
  const L* const logits = static_cast<const L*>(view.data) + offset;
  C maximum = static_cast<C>(logits[0]);
  C sum = std::exp(maximum - finite_maximum(maximum));
  sums.start(sum);
#pragma unroll 1
  for (int first = 1; first <= parts; first += kPartsAtOnce) {
    C values[kPartsAtOnce];
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i) {
      values[i] = first + i <= parts ? static_cast<C>(logits[(first + i) * view.part]) : -static_cast<C>(INFINITY);
    }
    C largest = maximum;
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i) largest = std::fmax(largest, values[i]);
    const C origin = finite_maximum(largest), factor = std::exp(maximum - origin);
    maximum = largest;
    sum *= factor;
    sums.rescale(factor);
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i) {
      if (first + i > parts) break;
      const C e = std::exp(values[i] - origin);
      sum += e;
      sums.add(first + i, e);
    }
  }
  return {finite_maximum(maximum), sum, C(1) / sum};
}

template <class C>
struct CellMotion {
  CellSoftmax<C> softmax;
  C background;
  Vector2<C> displacement;
};

template <class L, class C>
__device__ __forceinline__ CellMotion<C> move_cell(const LogitsView& view, int64_t offset, int parts, C x, C y) {
  DisplacementSums<C> sums{x, y};
  const CellSoftmax<C> softmax = pass_channels<L, C>(view, offset, parts, sums);
  return {softmax, sums.background * softmax.inverse_sum, {sums.x / softmax.sum, sums.y / softmax.sum}};
}

// Centres of cells that a thread visits at equal distances, from one division.
template <class C>
struct CellWalk {
  int row, column, width, row_step, column_step;
  C inverse_height, inverse_width;

  __device__ __forceinline__ CellWalk(int first, int step, int height, int width)
      : row(first / width),
        column(first - row * width),
        width(width),
        row_step(step / width),
        column_step(step - row_step * width),
        inverse_height(C(1) / static_cast<C>(height)),
        inverse_width(C(1) / static_cast<C>(width)) {}
  __device__ __forceinline__ C x() const { return cell_center(column, inverse_width); }
  __device__ __forceinline__ C y() const { return cell_center(row, inverse_height); }
  __device__ __forceinline__ void next() {
    row += row_step;
    column += column_step;
    if (column >= width) {
      column -= width;
      ++row;
    }
  }
};

// Which four cells a sample is of, and whether it moves with the flow: the upper left one, then four bits.
enum CornerBits : uint32_t { kHasRight = 1, kHasLower = 2, kMovesX = 4, kMovesY = 8 };
constexpr int kCornerShift = 4;

template <class C>
__device__ __forceinline__ uint32_t corner_word(const BilinearSample<C>& sample, int width) {
  return static_cast<uint32_t>(sample.upper_left(width)) << kCornerShift |
         (sample.x.second > sample.x.first ? kHasRight : 0) | (sample.y.second > sample.y.first ? kHasLower : 0) |
         (sample.x.moves ? kMovesX : 0) | (sample.y.moves ? kMovesY : 0);
}

// Offsets within an item, in bytes: packed ones fit 32 bits (see packs).
template <int kCount>
using Offset = std::conditional_t<kCount == 1, int64_t, uint32_t>;

// An item's tokens, reached by cell and packet.
template <class T, int kCount>
struct ItemRows {
  static constexpr int64_t kSize = sizeof(T);

  char* item;
  Offset<kCount> cell, packet;  // from one to the next

  __device__ __forceinline__ ItemRows(const TokensView& view, int64_t batch)
      : item(static_cast<char*>(view.data) + batch * view.batch * kSize),
        cell(static_cast<Offset<kCount>>(view.cell * kSize)),
        packet(static_cast<Offset<kCount>>((kCount == 1 ? view.channel : kCount) * kSize)) {}

  // For reading only. Keeps the compiler from computing the item's address anew at every access, three instructions
  // more; it no longer knows then that a store would be to global memory.
  __device__ __forceinline__ ItemRows& found_once() {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(item));
#endif
    return *this;
  }

  __device__ __forceinline__ T* at(Offset<kCount> offset) const { return reinterpret_cast<T*>(item + offset); }
};

// From an item's first cell to the four cells of a sample.
template <int kCount>
struct CornerOffsets {
  Offset<kCount> upper_left, upper_right, lower_left, lower_right;

  template <class T>
  __device__ __forceinline__ CornerOffsets(const ItemRows<T, kCount>& rows, uint32_t word, int width) {
    const Offset<kCount> right = (word & kHasRight) != 0 ? rows.cell : 0;
    const Offset<kCount> lower = (word & kHasLower) != 0 ? rows.cell * width : 0;
    upper_left = static_cast<Offset<kCount>>(word >> kCornerShift) * rows.cell;
    upper_right = upper_left + right;
    lower_left = upper_left + lower;
    lower_right = lower_left + right;
  }
};

// `kCount` channels as they lie in memory, converted when they are used: twice as many are under way as numbers would.
template <class T, int kCount>
struct Packet {
  using C = Compute<T>;
  using WordType = typename Word<kCount * static_cast<int>(sizeof(T))>::Type;
  static constexpr bool kPairs = sizeof(T) == 2 && kCount > 1;

  WordType word;

  __device__ __forceinline__ void read(const T* source) { word = __ldg(reinterpret_cast<const WordType*>(source)); }
  __device__ __forceinline__ void clear() { word = WordType{}; }

  __device__ __forceinline__ void numbers(C (&values)[kCount]) const {
    if constexpr (kPairs) {
      uint32_t pairs[kCount / 2];
      memcpy(pairs, &word, sizeof(word));
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const float2 pair = unpack<T>(pairs[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    } else {
      T lanes[kCount];
      memcpy(lanes, &word, sizeof(word));
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = static_cast<C>(lanes[i]);
    }
  }

  static __device__ __forceinline__ void write(T* target, const C (&values)[kCount]) {
    WordType word;
    if constexpr (kPairs) {
      uint32_t pairs[kCount / 2];
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) pairs[i] = pack<T>(values[2 * i], values[2 * i + 1]);
      memcpy(&word, pairs, sizeof(word));
    } else {
      T lanes[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) lanes[i] = static_cast<T>(values[i]);
      memcpy(&word, lanes, sizeof(word));
    }
    *reinterpret_cast<WordType*>(target) = word;
  }
};

// How lanes share out the channels of a row: 1 << shift lanes a row, a packet each.
struct RowLanes {
  bool packed = false;
  int shift = 1, packets = 0;

  MOTARFUSE_HOST_DEVICE int lanes() const { return 1 << shift; }
};

inline bool packs(const TokensView& view, int64_t cells, int64_t channels, int64_t size) {
  const int64_t count = 16 / size, most = (int64_t{1} << 31) / size;
  return view.channel == 1 && channels % count == 0 && view.batch % count == 0 && view.cell % count == 0 &&
         std::abs(view.cell) < most / cells && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// The widest group of lanes among those that leave fewest idle. Channels apart from one another are best read by few
// lanes: then a warp covers several cells, which are neighbours in memory where channels come first.
inline RowLanes share_row(int64_t channels, bool packed, bool strided, int64_t size) {
  RowLanes row;
  row.packed = packed;
  row.packets = static_cast<int>(packed ? channels * size / 16 : channels);
  const auto padded = [&](int shift) { return (row.packets + (1 << shift) - 1) >> shift << shift; };
  row.shift = strided ? 3 : 5;
  while (row.shift > 1 && 1 << (row.shift - 1) >= row.packets) --row.shift;
  const int widest = row.shift;
  for (int shift = widest; shift >= 3; --shift) {
    if (padded(shift) < padded(row.shift)) row.shift = shift;
  }
  return row;
}

inline void check_sizes(const WarpCall& call) {
  STD_TORCH_CHECK(call.num_cells() <= kMaxCells, "motion_warp: the CUDA kernels take grids of at most ", kMaxCells,
                  " cells, got ", call.num_cells());
  STD_TORCH_CHECK(call.parts <= kMaxParts && call.channels <= kMaxChannels,
                  "motion_warp: the CUDA kernels take at most ", kMaxParts, " parts and ", kMaxChannels,
                  " channels, got ", call.parts, " and ", call.channels);
}

// What every block of every device may have needs no leave.
constexpr int64_t kSharedMemoryOfAll = 48 << 10;

template <class K>
void allow_bytes(K* kernel, const char* direction, int64_t bytes, int32_t device) {
  if (bytes <= kSharedMemoryOfAll) return;
  const SharedMemory memory = shared_memory_of(device);
  STD_TORCH_CHECK(bytes <= memory.block, "motion_warp: the CUDA ", direction, " of so many parts and cells needs ",
                  bytes, " bytes of shared memory, a block of this device has ", memory.block);
  allow_shared_memory(kernel, memory);
}

}  // namespace motarfuse
