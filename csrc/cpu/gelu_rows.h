// Tiles of rows for elementwise kernels: a few rows side by side are one long row, beside which what belongs to channels
// is repeated, so that loops are long whatever the number of channels; sums over rows in an order of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../parallel.h"
#include "../views.h"
#include "part_pool_rows.h"

namespace motarfuse {

// Memory whose contents nobody has written yet.
template <class C>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(new C[std::max<int64_t>(count, 1)]) {}
  C* data() const { return memory_.get(); }

 private:
  std::unique_ptr<C[]> memory_;
};

template <class C>
bool is_of(ScalarType type) {
  return type == (sizeof(C) == 8 ? ScalarType::Double : ScalarType::Float);
}

// Numbers of a tensor, one for each channel, repeated: (repeats, channels).
template <class C>
void repeat_line(void* data, ScalarType type, int64_t first, int64_t stride, int64_t channels, int64_t repeats,
                 C* line) {
  load_line(data, type, first, stride, channels, line);
  for (int64_t i = 1; i < repeats; ++i) std::copy(line, line + channels, line + i * channels);
}

// Sums of a column of a tile over rows: in the type computed in over a run of tiles, in double over runs, so that sums
// of many rows keep their digits. Blocks of tiles are divided by the shape alone, so that their order is fixed.
template <class C>
class ColumnSums {
 public:
  // Tiles of a run.
  static constexpr int64_t kRun = 64;
  // A power of two: equal shares for two threads, and for four.
  static int64_t blocks_of(int64_t tiles, int64_t numbers) {
    int64_t blocks = 1;
    while (blocks < 64 && 2 * blocks <= tiles && 2 * blocks * kCellsPerTask <= numbers) blocks *= 2;
    return blocks;
  }

  // `total` (columns) is set to zero.
  ColumnSums(int64_t columns, double* total) : columns_(columns), run_(columns), total_(total) {
    std::fill(total, total + columns, 0.0);
    start();
  }
  // What a tile's numbers are added to.
  C* data() const { return run_.data(); }
  void end_tile() {
    if (++tiles_ == kRun) flush();
  }
  void flush() {
    for (int64_t i = 0; i < columns_; ++i) total_[i] += static_cast<double>(run_.data()[i]);
    start();
  }

 private:
  void start() {
    std::fill(run_.data(), run_.data() + columns_, C(0));
    tiles_ = 0;
  }

  const int64_t columns_;
  Scratch<C> run_;
  double* const total_;
  int64_t tiles_ = 0;
};

// Adds up blocks' sums (blocks, rows, repeats, channels) in place: the first channels of each of the first block's rows
// are the totals. Blocks go into the first one column by column: a chain of additions for each channel would wait.
inline const double* add_blocks(double* sums, int64_t blocks, int64_t rows, int64_t repeats, int64_t channels) {
  const int64_t columns = repeats * channels, size = rows * columns;
  for (int64_t block = 1; block < blocks; ++block) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[block * size + i];
  }
  for (int64_t row = 0; row < rows; ++row) {
    double* const totals = sums + row * columns;
    for (int64_t repeat = 1; repeat < repeats; ++repeat) {
      for (int64_t c = 0; c < channels; ++c) totals[c] += totals[repeat * channels + c];
    }
  }
  return sums;
}

// Totals into a gradient, one number every `stride` from `first` on.
inline void store_sums(const double* totals, int64_t channels, const Tensor& gradient, int64_t first, int64_t stride) {
  void* const data = gradient.data_ptr();
  const ScalarType type = gradient.scalar_type();
  for (int64_t c = 0; c < channels; ++c) write_as(data, type, first + c * stride, totals[c]);
}

}  // namespace motarfuse
