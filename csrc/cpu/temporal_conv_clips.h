// Clips for temporal_conv on the CPU: tiles of tokens, the taps beside them, and the rows that a frame's taps read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../views.h"
#include "gelu_rows.h"

namespace motarfuse {

// (B, T, N, C): strides in elements.
struct ClipsView {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t batch = 0, frame = 0, token = 0, channel = 0;

  explicit ClipsView(const Tensor& tensor)
      : data(tensor.data_ptr()),
        type(tensor.scalar_type()),
        batch(tensor.stride(0)),
        frame(tensor.stride(1)),
        token(tensor.stride(2)),
        channel(tensor.stride(3)) {}

  // Where tokens of a frame lie one behind the other in the type computed in; null where they do not.
  template <class C>
  C* in_place(int64_t first, int64_t tokens, int64_t channels) const {
    const bool follow = (channel == 1 || channels == 1) && (token == channels || tokens == 1);
    return follow && is_of<C>(type) ? static_cast<C*>(data) + first : nullptr;
  }
};

struct FrameMask {
  const bool* data = nullptr;
  int64_t batch = 0, frame = 0;

  explicit FrameMask(const std::optional<Tensor>& mask) {
    if (!mask.has_value()) return;
    data = static_cast<const bool*>(mask->data_ptr());
    batch = mask->stride(0);
    frame = mask->stride(1);
  }
  bool has(int64_t b, int64_t t) const { return data == nullptr || data[b * batch + t * frame]; }
};

struct ClipSizes {
  int64_t batch = 0, frames = 0, tokens = 0, channels = 0, taps = 0;
  bool holds = true;

  int64_t radius() const { return taps / 2; }
  // All taps read the one frame there is.
  bool single() const { return frames == 1 && holds; }
  // Taps that may read different rows.
  int64_t distinct() const { return single() ? 1 : taps; }
  int64_t numbers() const { return batch * frames * tokens * channels; }
};

// The part of a clip that one thread takes at a time.
struct ClipPart {
  int64_t batch, first, tokens;
};

// Of one direction: clips in tiles of tokens, and the taps and the bias beside each of them.
template <class C>
struct ClipTiles {
  ClipTiles(const ClipSizes& sizes, int64_t size, const Tensor& weight, const std::optional<Tensor>& bias)
      : sizes(sizes),
        each(std::min(sizes.tokens, std::max<int64_t>(1, size / sizes.channels))),
        of_a_clip((sizes.tokens + each - 1) / each),
        numbers((sizes.taps + 3) * columns()) {
    for (int64_t j = 0; j < sizes.taps; ++j) {
      repeat_line(weight.data_ptr(), weight.scalar_type(), j * weight.stride(1), weight.stride(0), sizes.channels, each,
                  row(j));
    }
    std::fill(row(sizes.taps), row(sizes.taps + 3), C(0));
    for (int64_t j = 0; j < sizes.taps; ++j) {
      for (int64_t i = 0; i < columns(); ++i) row(sizes.taps + 2)[i] += tap(j)[i];
    }
    if (!bias.has_value()) return;
    repeat_line(bias->data_ptr(), bias->scalar_type(), 0, bias->stride(0), sizes.channels, each,
                row(sizes.taps));
  }

  int64_t columns() const { return each * sizes.channels; }
  int64_t count() const { return sizes.batch * of_a_clip; }
  C* row(int64_t index) const { return numbers.data() + index * columns(); }
  const C* tap(int64_t j) const { return row(j); }
  const C* bias() const { return row(sizes.taps); }
  const C* zeros() const { return row(sizes.taps + 1); }
  const C* all_taps() const { return row(sizes.taps + 2); }

  ClipPart part(int64_t index) const {
    const int64_t first = index % of_a_clip * each;
    return {index / of_a_clip, first, std::min(each, sizes.tokens - first)};
  }

  const ClipSizes sizes;
  const int64_t each, of_a_clip;
  Scratch<C> numbers;  // (taps + 3, each, channels): taps, bias, zeros, the sum of taps
};

// A tile of a tensor's frames, where it lies or converted.
template <class C>
class Frames {
 public:
  Frames(const ClipsView& view, const ClipTiles<C>& tiles, const FrameMask& mask)
      : view_(view),
        tiles_(tiles),
        mask_(mask),
        in_place_(view.in_place<C>(0, tiles.sizes.tokens, tiles.sizes.channels) != nullptr ||
                  (tiles.each == 1 && view.in_place<C>(0, 1, tiles.sizes.channels) != nullptr)),
        rows_(tiles.sizes.frames),
        copied_(in_place_ ? 0 : tiles.sizes.frames * tiles.columns()) {}

  // Makes row(t) those of a part; a frame that is not there gets null and is not read.
  void take(const ClipPart& part) {
    const ClipSizes& sizes = tiles_.sizes;
    for (int64_t t = 0; t < sizes.frames; ++t) {
      rows_[t] = nullptr;
      if (!mask_.has(part.batch, t)) continue;
      const int64_t first = part.batch * view_.batch + t * view_.frame + part.first * view_.token;
      if (in_place_) {
        rows_[t] = static_cast<const C*>(view_.data) + first;
        continue;
      }
      C* const target = copied_.data() + t * tiles_.columns();
      for (int64_t n = 0; n < part.tokens; ++n) {
        load_line(view_.data, view_.type, first + n * view_.token, view_.channel, sizes.channels,
                  target + n * sizes.channels);
      }
      rows_[t] = target;
    }
  }
  // Null outside the clip, too.
  const C* row(int64_t t) const { return t < 0 || t >= tiles_.sizes.frames ? nullptr : rows_[t]; }

 private:
  const ClipsView view_;
  const ClipTiles<C>& tiles_;
  const FrameMask& mask_;
  const bool in_place_;
  std::vector<const C*> rows_;
  Scratch<C> copied_;
};

// Where a frame of a part of a contiguous result is computed, and written from where it was converted.
template <class C>
class Results {
 public:
  Results(const ClipsView& view, const ClipTiles<C>& tiles)
      : view_(view), tiles_(tiles), in_place_(is_of<C>(view.type)), computed_(in_place_ ? 0 : tiles.columns()) {}

  C* begin(const ClipPart& part, int64_t t) {
    first_ = part.batch * view_.batch + t * view_.frame + part.first * view_.token;
    return in_place_ ? static_cast<C*>(view_.data) + first_ : computed_.data();
  }
  void end(const C* row, int64_t count) {
    if (!in_place_) store_line(view_.data, view_.type, first_, 1, count, row);
  }

 private:
  const ClipsView view_;
  const ClipTiles<C>& tiles_;
  const bool in_place_;
  Scratch<C> computed_;
  int64_t first_ = 0;
};

// What one tap multiplies: its weights and the row it reads, both one number a column.
template <class C>
struct Term {
  const C* weights;
  const C* row;
};

// The terms of a frame that is there: x of its neighbours, or what stands for it.
template <class C>
void read_neighbours(const ClipTiles<C>& tiles, const Frames<C>& x, int64_t t, Term<C>* terms) {
  const ClipSizes& sizes = tiles.sizes;
  for (int64_t j = 0; j < sizes.taps; ++j) {
    const C* const row = x.row(t + j - sizes.radius());
    terms[j] = {tiles.tap(j), row != nullptr ? row : sizes.holds ? x.row(t) : tiles.zeros()};
  }
}

}  // namespace motarfuse
