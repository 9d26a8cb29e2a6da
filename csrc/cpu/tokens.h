// Rows of channels in the type computed in, whatever the tensor's dtype and strides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../views.h"
#include "cells.h"
#include "simd.h"

namespace motarfuse {

// Whether rows can be used where they lie.
template <class C>
MOTARFUSE_INLINE bool in_place(const TokensView& view) {
  return view.channel == 1 && view.type == (std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float);
}

// The channels of one cell into `row`.
template <class C>
MOTARFUSE_INLINE void load_row(const TokensView& view, int64_t batch, int64_t cell, int64_t channels, C* row) {
  with_type<C>(view.data, view.type, batch * view.batch + cell * view.cell, [&](const auto* source) {
    int64_t c = 0;
    if (view.channel == 1) {
      for (; c + kLanes<C> <= channels; c += kLanes<C>) store(row + c, load_as<C>(source + c));
    }
    for (; c < channels; ++c) row[c] = static_cast<C>(source[c * view.channel]);
  });
}

template <class C>
MOTARFUSE_INLINE void store_row(const TokensView& view, int64_t batch, int64_t cell, int64_t channels, const C* row) {
  with_type<C>(view.data, view.type, batch * view.batch + cell * view.cell, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    int64_t c = 0;
    if (view.channel == 1) {
      for (; c + kLanes<C> <= channels; c += kLanes<C>) store_as<C>(target + c, load(row + c));
    }
    for (; c < channels; ++c) target[c * view.channel] = static_cast<T>(row[c]);
  });
}

// Channels that are converted at once where cells, not channels, lie side by side: what a cache line of them holds.
constexpr int64_t kChannelTile = 16;

// All rows of an item into `rows`, one after the other. A transposed map is read along its cells, a few channels at once,
// so that whole cache lines are used.
template <class C>
MOTARFUSE_INLINE void load_rows(const TokensView& view, int64_t batch, int64_t cells, int64_t channels, C* rows) {
  if (view.channel == 1 || view.cell != 1) {
    for (int64_t n = 0; n < cells; ++n) load_row(view, batch, n, channels, rows + n * channels);
    return;
  }
  with_type<C>(view.data, view.type, batch * view.batch, [&](const auto* source) {
    for (int64_t first = 0; first < channels; first += kChannelTile) {
      const int64_t last = std::min(channels, first + kChannelTile);
      for (int64_t n = 0; n < cells; ++n) {
        for (int64_t c = first; c < last; ++c) rows[n * channels + c] = static_cast<C>(source[c * view.channel + n]);
      }
    }
  });
}

template <class C>
MOTARFUSE_INLINE void store_rows(const TokensView& view, int64_t batch, int64_t cells, int64_t channels,
                                 const C* rows) {
  if (view.channel == 1 || view.cell != 1) {
    for (int64_t n = 0; n < cells; ++n) store_row(view, batch, n, channels, rows + n * channels);
    return;
  }
  with_type<C>(view.data, view.type, batch * view.batch, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    for (int64_t first = 0; first < channels; first += kChannelTile) {
      const int64_t last = std::min(channels, first + kChannelTile);
      for (int64_t n = 0; n < cells; ++n) {
        for (int64_t c = first; c < last; ++c) target[c * view.channel + n] = static_cast<T>(rows[n * channels + c]);
      }
    }
  });
}

// A row of one item: where it lies, or the one converted into `rows`.
template <class C>
MOTARFUSE_INLINE C* row_at(const TokensView& view, int64_t batch, int64_t cell) {
  return offset<C>(view.data, batch * view.batch + cell * view.cell);
}

}  // namespace motarfuse
