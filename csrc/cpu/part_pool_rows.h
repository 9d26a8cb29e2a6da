// Lines and blocks of a tensor in the type computed in, whatever its dtype and strides, and memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../views.h"
#include "cells.h"
#include "simd.h"

namespace motarfuse {

// Zeros that begin at a cache line.
template <class C>
class Buffer {
 public:
  explicit Buffer(int64_t count) : memory_(count + kLine) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = memory_.data() + (64 - address % 64) % 64 / sizeof(C);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  C* data() { return data_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(C);
  std::vector<C> memory_;
  C* data_;
};

constexpr int64_t kColumnsAhead = 16;  // of the one of a transposed map that is read, asked for

// Numbers of a tensor, `stride` apart, in the type computed in.
template <class C>
void load_line(void* data, ScalarType type, int64_t first, int64_t stride, int64_t count, C* line) {
  with_type<C>(data, type, first, [&](const auto* source) {
    int64_t i = 0;
    if (stride == 1) {
      for (; i + kLanes<C> <= count; i += kLanes<C>) store(line + i, load_as<C>(source + i));
    }
    for (; i < count; ++i) line[i] = static_cast<C>(source[i * stride]);
  });
}

template <class C>
void store_line(void* data, ScalarType type, int64_t first, int64_t stride, int64_t count, const C* line) {
  with_type<C>(data, type, first, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    int64_t i = 0;
    if (stride == 1) {
      for (; i + kLanes<C> <= count; i += kLanes<C>) store_as<C>(target + i, load(line + i));
    }
    for (; i < count; ++i) target[i * stride] = static_cast<T>(line[i]);
  });
}

// Calls transpose_four(cell, channel) for fours of both, a cache line of either side at a time, and move_one(cell,
// channel) for the rest.
template <class C, class F, class G>
MOTARFUSE_INLINE void over_transposed(int64_t cells, int64_t channels, const F& transpose_four, const G& move_one) {
  constexpr int64_t kTile = 16;
  const int64_t whole_cells = kLanes<C> == 4 ? cells / 4 * 4 : 0, whole_channels = channels / 4 * 4;
  for (int64_t first = 0; first < whole_channels; first += kTile) {
    const int64_t last = std::min(whole_channels, first + kTile);
    for (int64_t begin = 0; begin < whole_cells; begin += kTile) {
      const int64_t end = std::min(whole_cells, begin + kTile);
      for (int64_t c = first; c < last; c += 4) {
        for (int64_t n = begin; n < end; n += 4) transpose_four(n, c);
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t n = c < whole_channels ? whole_cells : 0; n < cells; ++n) move_one(n, c);
  }
}

// Some cells of an item into rows that are `width` apart. A transposed map is read as it lies.
template <class C>
void load_rows(const TokensView& view, int64_t batch, int64_t first, int64_t cells, int64_t channels, int64_t width,
               C* rows) {
  const int64_t begin = batch * view.batch + first * view.cell;
  if (view.channel == 1 || view.cell != 1) {
    for (int64_t n = 0; n < cells; ++n) {
      load_line(view.data, view.type, begin + n * view.cell, view.channel, channels, rows + n * width);
    }
    return;
  }
  with_type<C>(view.data, view.type, begin, [&](const auto* source) {
    over_transposed<C>(
        cells, channels,
        [&](int64_t n, int64_t c) {
          if constexpr (kLanes<C> == 4) {
            Vector<C> columns[4], four[4];
            for (int i = 0; i < 4; ++i) {
              __builtin_prefetch(source + (c + i + kColumnsAhead) * view.channel + n);
              columns[i] = load_as<C>(source + (c + i) * view.channel + n);
            }
            transpose(columns, four);
            for (int i = 0; i < 4; ++i) store(rows + (n + i) * width + c, four[i]);
          }
        },
        [&](int64_t n, int64_t c) { rows[n * width + c] = static_cast<C>(source[c * view.channel + n]); });
  });
}

template <class C>
void store_rows(const TokensView& view, int64_t batch, int64_t first, int64_t cells, int64_t channels, int64_t width,
                const C* rows) {
  const int64_t begin = batch * view.batch + first * view.cell;
  if (view.channel == 1 || view.cell != 1) {
    for (int64_t n = 0; n < cells; ++n) {
      store_line(view.data, view.type, begin + n * view.cell, view.channel, channels, rows + n * width);
    }
    return;
  }
  with_type<C>(view.data, view.type, begin, [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    over_transposed<C>(
        cells, channels,
        [&](int64_t n, int64_t c) {
          if constexpr (kLanes<C> == 4) {
            Vector<C> four[4], columns[4];
            for (int i = 0; i < 4; ++i) four[i] = load(rows + (n + i) * width + c);
            transpose(four, columns);
            for (int i = 0; i < 4; ++i) {
              __builtin_prefetch(target + (c + i + kColumnsAhead) * view.channel + n, 1);
              store_as<C>(target + (c + i) * view.channel + n, columns[i]);
            }
          }
        },
        [&](int64_t n, int64_t c) { target[c * view.channel + n] = static_cast<T>(rows[n * width + c]); });
  });
}

}  // namespace motarfuse
