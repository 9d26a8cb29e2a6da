// part_moments on the GPU: a group of lanes a row (a warp, or a block where rows are long or few), one launch a
// direction. The forward reads every cell once, with a running maximum; the backward is elementwise, behind one sum a
// row where the inputs are not half. No atomics: every sum has a fixed order.
#include "../part_moments.h"

#include <algorithm>

#include "../library.h"
#include "../part_moments_call.h"
#include "../scalar_types.h"
#include "access.h"
#include "launch.h"

namespace motarfuse {
namespace {

constexpr int kThreads = 256;
// Blocks a multiprocessor must hold. Without a number ptxas aims higher on some architectures and spills for it.
template <class T>
constexpr int kForwardBlocks = sizeof(T) == 8 ? 1 : 2;
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 8 ? 2 : 3;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

struct NoAffine {};

// Cells a lane takes at once: as many as make its widest access 16 bytes.
template <class T, class A>
constexpr int kCells = 16 / (4 * sizeof(A)) > 0 ? 16 / (4 * sizeof(A)) : 1;
template <class T>
constexpr int kCells<T, NoAffine> = 16 / sizeof(T);

// Accesses a lane has under way before it computes: about 64 bytes, as many as 80 registers hold.
template <class T, class A>
constexpr int kSteps = sizeof(A) == 4 ? 4 : 2;
template <class T>
constexpr int kSteps<T, NoAffine> = 2;

// exp(difference / temperature) for a difference <= 0. The factor turns it into an exponent of 2 for float; its second
// part is below what half inputs resolve.
template <class T>
struct Exponential {
  using C = Compute<T>;
  SplitFactor<C> factor;

  explicit Exponential(double inverse_temperature)
      : factor(inverse_temperature * (sizeof(C) == sizeof(float) ? 1.44269504088896340736 : 1.0)) {}

  __device__ __forceinline__ C operator()(C difference) const {
    if constexpr (std::is_same_v<C, double>) {
      return exp(factor.times(difference));
    } else if constexpr (sizeof(T) == 2) {
      return exp2f(difference * factor.high);
    } else {
      return exp2f(factor.times(difference));
    }
  }
};

// Whether each of the four tensors may be accessed in packed words; constant over a launch.
struct Packed {
  bool logits, affine, grad_logits, grad_affine;
};

template <class T, int kCount>
__device__ __forceinline__ void load_logits(const LogitsView& view, bool packed, int64_t start, int cell, int cells,
                                            Compute<T> (&logits)[kCount]) {
  const T* source = static_cast<const T*>(view.data) + start + cell * view.cell;
  if (packed && cell + kCount <= cells) return load_packed(source, logits);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const bool exists = cell + i < cells;
    logits[i] = exists ? static_cast<Compute<T>>(source[i * view.cell]) : -static_cast<Compute<T>>(INFINITY);
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_logits(const LogitsView& view, bool packed, int64_t start, int cell, int cells,
                                             const Compute<T> (&values)[kCount]) {
  T* target = static_cast<T*>(view.data) + start + cell * view.cell;
  if (packed && cell + kCount <= cells) return store_packed(target, values);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (cell + i < cells) target[i * view.cell] = static_cast<T>(values[i]);
  }
}

// One cell's affine, four numbers; zero for a cell that does not exist.
template <class A>
__device__ __forceinline__ void load_affine(const AffineView& view, bool packed, int64_t start, int cell, int cells,
                                            Compute<A> (&affine)[4]) {
  const A* source = static_cast<const A*>(view.data) + start + cell * view.cell;
  if (cell >= cells) {
#pragma unroll
    for (int c = 0; c < 4; ++c) affine[c] = 0;
  } else if (packed) {
    load_packed(source, affine);
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      affine[c] = static_cast<Compute<A>>(source[(c / 2) * view.row + (c % 2) * view.column]);
    }
  }
}

template <class A>
__device__ __forceinline__ void store_affine(const AffineView& view, bool packed, int64_t start, int cell,
                                             const Compute<A> (&affine)[4]) {
  A* target = static_cast<A*>(view.data) + start + cell * view.cell;
  if (packed) return store_packed(target, affine);
#pragma unroll
  for (int c = 0; c < 4; ++c) target[(c / 2) * view.row + (c % 2) * view.column] = static_cast<A>(affine[c]);
}

// Sums of a lane, a warp or a block, with the maximum they are relative to.
template <class C>
struct Partial {
  C maximum;
  Moments<C> sums;

  __device__ __forceinline__ void clear() {
    maximum = -static_cast<C>(INFINITY);
    sums.clear();
  }

  template <class E>
  __device__ __forceinline__ void raise(C other, const E& exponential) {
    const C larger = fmax(maximum, other);
    sums.rescale(exponential(maximum - finite_maximum(larger)));
    maximum = larger;
  }

  template <class E>
  __device__ __forceinline__ void merge(Partial other, const E& exponential) {
    raise(other.maximum, exponential);
    other.raise(maximum, exponential);
    sums.merge(other.sums);
  }

  __device__ __forceinline__ Partial shuffle_down(int distance) const {
    Partial other;
    other.maximum = __shfl_down_sync(kAllLanes, maximum, distance);
    other.sums.sum = __shfl_down_sync(kAllLanes, sums.sum, distance);
    other.sums.square = __shfl_down_sync(kAllLanes, sums.square, distance);
    other.sums.x = __shfl_down_sync(kAllLanes, sums.x, distance);
    other.sums.y = __shfl_down_sync(kAllLanes, sums.y, distance);
#pragma unroll
    for (int c = 0; c < 4; ++c) other.sums.affine[c] = __shfl_down_sync(kAllLanes, sums.affine[c], distance);
    return other;
  }
};

// The group's result, in its first lane.
template <bool kBlockPerRow, class C, class E>
__device__ __forceinline__ void reduce(Partial<C>& partial, const E& exponential) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    partial.merge(partial.shuffle_down(distance), exponential);
  }
  if constexpr (kBlockPerRow) {
    __shared__ Partial<C> warps[kWarps];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __syncthreads();  // the row before has been read
    if (lane == 0) warps[warp] = partial;
    __syncthreads();
    if (warp != 0) return;
    partial = warps[lane % kWarps];
#pragma unroll
    for (int distance = kWarps / 2; distance > 0; distance /= 2) {
      partial.merge(partial.shuffle_down(distance), exponential);
    }
  }
}

// x and y of consecutive cells from one division.
template <class C>
struct CellPosition {
  int row, column, width;
  C inverse_height, inverse_width;

  __device__ __forceinline__ CellPosition(int width, C inverse_height, C inverse_width)
      : row(0), column(0), width(width), inverse_height(inverse_height), inverse_width(inverse_width) {}
  __device__ __forceinline__ void move_to(int cell) {
    row = cell / width;
    column = cell - row * width;
  }
  __device__ __forceinline__ C x() const { return cell_center(column, inverse_width); }
  __device__ __forceinline__ C y() const { return cell_center(row, inverse_height); }
  __device__ __forceinline__ void next() {
    if (++column == width) {
      column = 0;
      ++row;
    }
  }
};

template <class T, class A, bool kBlockPerRow>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T>) part_moments_forward_kernel(
    MomentsCall call, Packed packed, Exponential<T> exponential) {
  using C = Compute<T>;
  constexpr bool kHasAffine = !std::is_same_v<A, NoAffine>;
  constexpr int kCount = kCells<T, A>, kUnroll = kSteps<T, A>, kGroup = kBlockPerRow ? kThreads : kWarp;
  const int cells = static_cast<int>(call.num_cells());
  CellPosition<C> position(static_cast<int>(call.width), C(1) / static_cast<C>(call.height),
                           C(1) / static_cast<C>(call.width));
  const int lane = threadIdx.x % kGroup;
  const int64_t groups = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup; row < call.num_rows();
       row += groups) {
    const int64_t batch = row / call.parts, part = row % call.parts;
    const int64_t logits_start = batch * call.logits.batch + part * call.logits.part;
    const int64_t affine_start = batch * call.affine.batch + part * call.affine.part;
    Partial<C> partial;
    partial.clear();
    for (int first = lane * kCount; first < cells; first += kGroup * kCount * kUnroll) {
      C logits[kUnroll][kCount], affine[kHasAffine ? kUnroll : 1][kHasAffine ? kCount : 1][4];
      C largest = -static_cast<C>(INFINITY);
#pragma unroll
      for (int s = 0; s < kUnroll; ++s) {
        const int cell = first + s * kGroup * kCount;
        load_logits<T>(call.logits, packed.logits, logits_start, cell, cells, logits[s]);
        if constexpr (kHasAffine) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            load_affine<A>(call.affine, packed.affine, affine_start, cell + i, cells, affine[s][i]);
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kUnroll; ++s) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) largest = fmax(largest, logits[s][i]);
      }
      partial.raise(largest, exponential);
      const C origin = finite_maximum(partial.maximum);
#pragma unroll
      for (int s = 0; s < kUnroll; ++s) {
        position.move_to(first + s * kGroup * kCount);
#pragma unroll
        for (int i = 0; i < kCount; ++i, position.next()) {
          const C e = exponential(logits[s][i] - origin);
          partial.sums.add(e, position.x(), position.y());
          if constexpr (kHasAffine) partial.sums.add_affine(e, affine[s][i]);
        }
      }
    }
    reduce<kBlockPerRow>(partial, exponential);
    if (lane == 0) write_row(call, row, finish_row(partial.sums, partial.maximum, kHasAffine));
  }
}

// A number summed over a group, the same in every lane.
template <bool kBlockPerRow, class C>
__device__ __forceinline__ C sum_over_group(C value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  if constexpr (kBlockPerRow) {
    __shared__ C warps[kWarps];
    __syncthreads();  // the row before has been read
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = C(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += warps[w];
  }
  return value;
}

// What the backward reads of `kCount` consecutive cells.
template <class T, class A, int kCount>
struct CellGradients {
  using C = Compute<T>;
  C p[kCount], deviation[kCount];

  __device__ __forceinline__ void read(const MomentsCall& call, const Packed& packed, const Exponential<T>& exponential,
                                       const RowGradient<C>& gradient, CellPosition<C>& position, int64_t logits_start,
                                       int64_t affine_start, int first, int cells) {
    load_logits<T>(call.logits, packed.logits, logits_start, first, cells, p);
    position.move_to(first);
#pragma unroll
    for (int i = 0; i < kCount; ++i, position.next()) {
      p[i] = exponential(p[i] - gradient.row.maximum) * gradient.row.inverse_sum;
      if constexpr (std::is_same_v<A, NoAffine>) {
        deviation[i] = gradient.deviation(p[i], position.x(), position.y());
      } else if (call.grad_logits.data != nullptr) {
        C affine[4];
        load_affine<A>(call.affine, packed.affine, affine_start, first + i, cells, affine);
        deviation[i] = gradient.deviation(p[i], position.x(), position.y(), affine);
      }
    }
  }
};

template <class T, class A, bool kBlockPerRow>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>) part_moments_backward_kernel(
    MomentsCall call, Packed packed, Exponential<T> exponential) {
  using C = Compute<T>;
  constexpr int kCount = kCells<T, A>, kGroup = kBlockPerRow ? kThreads : kWarp, kRows = kThreads / kGroup;
  const int cells = static_cast<int>(call.num_cells());
  CellPosition<C> position(static_cast<int>(call.width), C(1) / static_cast<C>(call.height),
                           C(1) / static_cast<C>(call.width));
  const int lane = threadIdx.x % kGroup;
  for (int64_t index = int64_t{blockIdx.x} * kRows + threadIdx.x / kGroup; index < call.num_rows();
       index += int64_t{gridDim.x} * kRows) {
    const int64_t batch = index / call.parts, part = index % call.parts;
    const RowGradient<C> gradient = read_row_gradient<C>(call, index);
    const int64_t logits_start = batch * call.logits.batch + part * call.logits.part;
    const int64_t affine_start = batch * call.affine.batch + part * call.affine.part;
    const int64_t grad_logits_start = batch * call.grad_logits.batch + part * call.grad_logits.part;
    const int64_t grad_affine_start = batch * call.grad_affine.batch + part * call.grad_affine.part;
    CellGradients<T, A, kCount> group;
    C mean = C(0);
    if constexpr (sizeof(T) > 2) {
      if (call.grad_logits.data != nullptr) {
        // A second reading below finds the row in the cache.
        for (int first = lane * kCount; first < cells; first += kGroup * kCount) {
          group.read(call, packed, exponential, gradient, position, logits_start, affine_start, first, cells);
#pragma unroll
          for (int i = 0; i < kCount; ++i) mean += group.p[i] * group.deviation[i];
        }
        mean = sum_over_group<kBlockPerRow>(mean);
      }
    }
    for (int first = lane * kCount; first < cells; first += kGroup * kCount) {
      group.read(call, packed, exponential, gradient, position, logits_start, affine_start, first, cells);
      if constexpr (!std::is_same_v<A, NoAffine>) {
        if (call.grad_affine.data != nullptr) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            if (first + i >= cells) break;
            C weighted[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) weighted[c] = group.p[i] * gradient.affine[c];
            store_affine<A>(call.grad_affine, packed.grad_affine, grad_affine_start, first + i, weighted);
          }
        }
      }
      if (call.grad_logits.data != nullptr) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) group.deviation[i] = gradient.logit(group.p[i], group.deviation[i], mean);
        store_logits<T>(call.grad_logits, packed.grad_logits, grad_logits_start, first, cells, group.deviation);
      }
    }
  }
}

// A group of `count` cells from a multiple of `count` on may be accessed as words.
bool packs(const LogitsView& view, int64_t count, int64_t size) {
  return view.cell == 1 && view.batch % count == 0 && view.part % count == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % (count * size) == 0;
}

bool packs(const AffineView& view, int64_t size) {
  const int64_t bytes = std::min<int64_t>(16, 4 * size);
  return view.packed() && view.batch % 4 == 0 && view.part % 4 == 0 && view.cell % 4 == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % bytes == 0;
}

// A block a row where rows are long, or too few for warps to fill the machine.
bool block_per_row(const MomentsCall& call, int multiprocessors) {
  const int64_t warps_that_fill = int64_t{multiprocessors} * 16;
  return call.num_cells() >= 2048 || (call.num_cells() >= 512 && call.num_rows() < warps_that_fill);
}

int num_blocks(int64_t rows, int rows_per_block) {
  return static_cast<int>(std::min<int64_t>((rows + rows_per_block - 1) / rows_per_block, kMaximumBlocks));
}

template <class T, class A>
Packed packed_of(const MomentsCall& call) {
  Packed packed{packs(call.logits, kCells<T, A>, sizeof(T)), false, packs(call.grad_logits, kCells<T, A>, sizeof(T)),
                false};
  if constexpr (!std::is_same_v<A, NoAffine>) {
    packed.affine = packs(call.affine, sizeof(A));
    packed.grad_affine = packs(call.grad_affine, sizeof(A));
  }
  return packed;
}

template <class T, class A>
void launch_forward(const MomentsCall& call, int multiprocessors, cudaStream_t stream) {
  const Packed packed = packed_of<T, A>(call);
  const Exponential<T> exponential(call.inverse_temperature);
  if (block_per_row(call, multiprocessors)) {
    part_moments_forward_kernel<T, A, true>
        <<<num_blocks(call.num_rows(), 1), kThreads, 0, stream>>>(call, packed, exponential);
  } else {
    part_moments_forward_kernel<T, A, false>
        <<<num_blocks(call.num_rows(), kWarps), kThreads, 0, stream>>>(call, packed, exponential);
  }
  check_launch("part_moments_forward_kernel");
}

template <class T, class A>
void launch_backward(const MomentsCall& call, int multiprocessors, cudaStream_t stream) {
  const Packed packed = packed_of<T, A>(call);
  const Exponential<T> exponential(call.inverse_temperature);
  if (block_per_row(call, multiprocessors)) {
    part_moments_backward_kernel<T, A, true>
        <<<num_blocks(call.num_rows(), 1), kThreads, 0, stream>>>(call, packed, exponential);
  } else {
    part_moments_backward_kernel<T, A, false>
        <<<num_blocks(call.num_rows(), kWarps), kThreads, 0, stream>>>(call, packed, exponential);
  }
  check_launch("part_moments_backward_kernel");
}

// launch(T{}, A{}) with the types of logits and affine: A is T, float beside a half T, or NoAffine.
template <class F>
void dispatch(const MomentsCall& call, const F& launch) {
  if (call.num_rows() == 0) return;
  // A lane counts up to a step beyond the last cell.
  STD_TORCH_CHECK(call.num_cells() < (int64_t{1} << 30), "part_moments: a row has more than 2^30 cells");
  dispatch_float(call.logits.type, [&](auto t) {
    using T = decltype(t);
    if (call.affine.data == nullptr) {
      launch(T{}, NoAffine{});
    } else if (call.affine.type == call.logits.type) {
      launch(T{}, T{});
    } else if constexpr (sizeof(T) == 2) {
      launch(T{}, float{});
    }
  });
}

}  // namespace

MomentResults part_moments_forward_cuda(const Tensor& logits, const std::optional<Tensor>& affine, int64_t height,
                                        int64_t width, double temperature, ScalarType dtype, bool save_statistics) {
  const int32_t device = logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  MomentsCall call = moments_call(logits, affine, height, width, temperature);
  MomentResults results = allocate_results(call, logits, dtype, save_statistics);
  dispatch(call, [&](auto t, auto a) {
    launch_forward<decltype(t), decltype(a)>(call, num_multiprocessors(device), current_stream(device));
  });
  return results;
}

MomentGradients part_moments_backward_cuda(const Tensor& grad_keypoints, const Tensor& grad_affines,
                                           const Tensor& grad_confidence, const Tensor& logits,
                                           const std::optional<Tensor>& affine, const Tensor& statistics,
                                           int64_t height, int64_t width, double temperature, bool needs_logits,
                                           bool needs_affine) {
  const int32_t device = logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  MomentsCall call = moments_call(logits, affine, height, width, temperature);
  take_row_gradients(call, logits, grad_keypoints, grad_affines, grad_confidence, statistics);
  MomentGradients gradients = allocate_gradients(call, logits, affine, needs_logits, needs_affine);
  dispatch(call, [&](auto t, auto a) {
    launch_backward<decltype(t), decltype(a)>(call, num_multiprocessors(device), current_stream(device));
  });
  return gradients;
}

}  // namespace motarfuse
