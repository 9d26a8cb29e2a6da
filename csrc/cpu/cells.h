// Rows of cells in the type computed in, whatever the tensor's dtype and strides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../part_moments_call.h"
#include "simd.h"

namespace motarfuse {

// Sums are kept in several chains, which hide the latency of an addition, and block by block: a weight near 1 is then
// followed by few additions, each of which rounds it.
constexpr int kChains = 4;
template <class C>
constexpr int64_t kBlock = 32 * kLanes<C>;

// x and y of every cell of a grid.
template <class C>
struct CellTable {
  std::vector<C> x, y;

  CellTable(int64_t height, int64_t width) : x(height * width), y(height * width) {
    for (int64_t i = 0; i < height * width; ++i) {
      x[i] = static_cast<C>(cell_center(static_cast<int>(i % width), 1.0 / static_cast<double>(width)));
      y[i] = static_cast<C>(cell_center(static_cast<int>(i / width), 1.0 / static_cast<double>(height)));
    }
  }
};

template <class T>
MOTARFUSE_INLINE T* offset(void* data, int64_t elements) {
  return static_cast<T*>(data) + elements;
}

// Calls function(T*) with the dtype's C++ type: C, or a half type that computes in C = float.
template <class C, class F>
MOTARFUSE_INLINE void with_type(void* data, ScalarType type, int64_t elements, const F& function) {
  if constexpr (std::is_same_v<C, double>) {
    function(offset<C>(data, elements));
  } else if (type == ScalarType::Half) {
    function(offset<Half>(data, elements));
  } else if (type == ScalarType::BFloat16) {
    function(offset<BFloat16>(data, elements));
  } else {
    function(offset<C>(data, elements));
  }
}

// The logits of `cells` cells of a row, from the cell `first` on: in place where they are contiguous and of type C, else
// converted into `scratch`.
template <class C>
MOTARFUSE_INLINE const C* row_of_logits(const LogitsView& view, int64_t batch, int64_t part, int64_t cells, C* scratch,
                                        int64_t first = 0) {
  const C* row = scratch;
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part + first * view.cell, [&](auto* source) {
    if (view.cell != 1) {
      for (int64_t i = 0; i < cells; ++i) scratch[i] = static_cast<C>(source[i * view.cell]);
    } else if constexpr (std::is_same_v<decltype(source), C*>) {
      row = source;
    } else {
      int64_t i = 0;
      for (; i + kLanes<C> <= cells; i += kLanes<C>) store(scratch + i, load_as<C>(source + i));
      for (; i < cells; ++i) scratch[i] = static_cast<C>(source[i]);
    }
  });
  return row;
}

template <class C>
MOTARFUSE_INLINE void store_row_of_logits(const LogitsView& view, int64_t batch, int64_t part, int64_t cells,
                                          const C* row, int64_t first = 0) {
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part + first * view.cell, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    int64_t i = 0;
    if (view.cell == 1) {
      for (; i + kLanes<C> <= cells; i += kLanes<C>) store_as<C>(target + i, load(row + i));
    }
    for (; i < cells; ++i) target[i * view.cell] = static_cast<T>(row[i]);
  });
}

// The processor's own prefetching stops at every page of 4 KB; asking 2 KB ahead keeps memory busy (1.6 times as fast
// where the affines come from memory). A prefetch behind the end of a tensor does nothing.
template <class T>
MOTARFUSE_INLINE void prefetch_affine(const T* cell) {
  __builtin_prefetch(reinterpret_cast<const char*>(cell) + 2048);
}

// Calls function(cell, affine) for whole vectors of cells, with one vector a component, then for single cells.
template <class C, class F>
MOTARFUSE_INLINE void for_each_affine(const AffineView& view, int64_t batch, int64_t part, int64_t cells,
                                      const F& function) {
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part, [&](const auto* source) {
    int64_t i = 0;
    if constexpr (kLanes<C> == 4) {
      for (; view.packed() && i + 4 <= cells; i += 4) {
        Vector<C> rows[4], affine[4];
        for (int j = 0; j < 4; ++j) {
          prefetch_affine(source + (i + j) * view.cell);
          rows[j] = load_as<C>(source + (i + j) * view.cell);
        }
        transpose(rows, affine);
        function(i, affine);
      }
    }
    for (; i < cells; ++i) {
      C affine[4];
      for (int c = 0; c < 4; ++c) {
        affine[c] = static_cast<C>(source[i * view.cell + (c / 2) * view.row + (c % 2) * view.column]);
      }
      function(i, affine);
    }
  });
}

// Adds weights_i * affine_i to `sums`. A vector is one cell's four numbers here: nothing is transposed.
template <class C>
MOTARFUSE_INLINE void add_affines(const AffineView& view, int64_t batch, int64_t part, int64_t cells, const C* weights,
                                  C sums[4]) {
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part, [&](const auto* source) {
    int64_t i = 0;
    if constexpr (kLanes<C> == 4) {
      Vector<C> total = {};
      while (view.packed() && i + kChains <= cells) {
        Vector<C> chains[kChains] = {};
        const int64_t stop = std::min(cells, i + kBlock<C>);
        for (; i + kChains <= stop; i += kChains) {
          for (int c = 0; c < kChains; ++c) {
            prefetch_affine(source + (i + c) * view.cell);
            chains[c] += load_as<C>(source + (i + c) * view.cell) * weights[i + c];
          }
        }
        total += (chains[0] + chains[2]) + (chains[1] + chains[3]);
      }
      for (int c = 0; c < 4; ++c) sums[c] += total[c];
    }
    for (; i < cells; ++i) {
      for (int c = 0; c < 4; ++c) {
        const C component = static_cast<C>(source[i * view.cell + (c / 2) * view.row + (c % 2) * view.column]);
        sums[c] += weights[i] * component;
      }
    }
  });
}

// Writes weights_i * affine to every cell of a row.
template <class C>
MOTARFUSE_INLINE void store_affines(const AffineView& view, int64_t batch, int64_t part, int64_t cells,
                                    const C* weights, const C affine[4]) {
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    if constexpr (kLanes<C> == 4) {
      if (view.packed()) {
        const Vector<C> whole = load(affine);
        for (int64_t i = 0; i < cells; ++i) store_as<C>(target + i * view.cell, whole * weights[i]);
        return;
      }
    }
    for (int64_t i = 0; i < cells; ++i) {
      for (int c = 0; c < 4; ++c) {
        target[i * view.cell + (c / 2) * view.row + (c % 2) * view.column] = static_cast<T>(weights[i] * affine[c]);
      }
    }
  });
}

}  // namespace motarfuse
