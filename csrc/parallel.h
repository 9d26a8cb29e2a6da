// Rows over torch's own CPU threads: torch.set_num_threads holds here too, and nested parallel regions do not multiply.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace motarfuse {

// Work below which starting another thread costs more than it brings.
constexpr int64_t kCellsPerTask = 1 << 14;

// function(begin, end) over [0, rows), in parts of at least kCellsPerTask cells.
template <class F>
void parallel_rows(int64_t rows, int64_t cells_per_row, const F& function) {
  const int64_t grain = std::max<int64_t>(1, kCellsPerTask / std::max<int64_t>(1, cells_per_row));
  torch::stable::parallel_for(0, rows, grain, function);
}

}  // namespace motarfuse
