// Cells of a row as vectors of the type computed in, whatever the tensor's dtype and strides. `count` is how many of the
// vector's cells exist: the row's last vector may be short.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../part_moments_call.h"
#include "simd.h"

namespace motarfuse {

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

// The logits of a row: in place where they are contiguous and of type C, else converted into `scratch` (N numbers).
template <class C>
MOTARFUSE_INLINE const C* row_of_logits(const LogitsView& view, int64_t batch, int64_t part, int64_t cells, C* scratch) {
  const C* row = scratch;
  with_type<C>(view.data, view.type, batch * view.batch + part * view.part, [&](auto* source) {
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

// Missing cells are hidden ones.
template <class C>
MOTARFUSE_INLINE Vector<C> load_logits(const C* row, int64_t count) {
  if (count >= kLanes<C>) return load(row);
  Vector<C> result = splat(-static_cast<C>(INFINITY));
  for (int i = 0; i < kLanes<C>; ++i) {
    if (i < count) result[i] = row[i];
  }
  return result;
}

template <class C>
MOTARFUSE_INLINE void store_logits(const LogitsView& view, int64_t batch, int64_t part, int64_t cell, int64_t count,
                                   Vector<C> values) {
  const int64_t start = batch * view.batch + part * view.part + cell * view.cell;
  with_type<C>(view.data, view.type, start, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    if (view.cell == 1 && count >= kLanes<C>) return store_as<C>(target, values);
    for (int i = 0; i < kLanes<C>; ++i) {
      if (i < count) target[i * view.cell] = static_cast<T>(values[i]);
    }
  });
}

// The affines of the cells from `cell` on, one vector a component; missing cells are zero.
template <class C>
MOTARFUSE_INLINE void load_affines(const AffineView& view, int64_t batch, int64_t part, int64_t cell, int64_t count,
                                   Vector<C> affine[4]) {
  const int64_t start = batch * view.batch + part * view.part + cell * view.cell;
  with_type<C>(view.data, view.type, start, [&](const auto* source) {
    if constexpr (kLanes<C> == 4) {
      if (view.packed() && count >= 4) {
        Vector<C> cells[4];
        for (int i = 0; i < 4; ++i) cells[i] = load_as<C>(source + i * view.cell);
        return transpose(cells, affine);
      }
    }
    for (int c = 0; c < 4; ++c) {
      const int64_t component = (c / 2) * view.row + (c % 2) * view.column;
      affine[c] = Vector<C>{};
      for (int i = 0; i < kLanes<C>; ++i) {
        if (i < count) affine[c][i] = static_cast<C>(source[i * view.cell + component]);
      }
    }
  });
}

// Writes weights_i * affine to the cells from `cell` on.
template <class C>
MOTARFUSE_INLINE void store_affines(const AffineView& view, int64_t batch, int64_t part, int64_t cell, int64_t count,
                                    Vector<C> weights, const C affine[4]) {
  const int64_t start = batch * view.batch + part * view.part + cell * view.cell;
  with_type<C>(view.data, view.type, start, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    if constexpr (kLanes<C> == 4) {
      if (view.packed() && count >= 4) {
        const Vector<C> whole = load(affine);
        for (int i = 0; i < 4; ++i) store_as<C>(target + i * view.cell, whole * weights[i]);
        return;
      }
    }
    for (int i = 0; i < kLanes<C>; ++i) {
      for (int c = 0; i < count && c < 4; ++c) {
        target[i * view.cell + (c / 2) * view.row + (c % 2) * view.column] = static_cast<T>(weights[i] * affine[c]);
      }
    }
  });
}

}  // namespace motarfuse
