// Bilinear resizing with antialiasing, from interleaved pixels to three planes.
//
// The arithmetic is that of Pillow's resize with Resampling.BILINEAR, to the bit: across, then down, each with weights
// of 22 binary places that are computed in double precision, and bytes in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace motarfuse::resize {

// Raised whenever the arithmetic or a signature changes: Python refuses a library of another revision.
constexpr int kRevision = 1;

struct Source {
  const uint8_t* pixels;  // rows without gaps
  int64_t height, width;
  int64_t channels;  // 3: RGB; 4: RGB and a byte that is ignored
};

// What a thread works with; grows to the largest image it meets.
struct Scratch {
  std::vector<uint8_t> row, planes;
  std::vector<int32_t> first_across, first_down, weight_across, weight_down;
};

// Into three planes (3, height, width).
void fit(const Source& source, int64_t height, int64_t width, Scratch& scratch, uint8_t* out);

}  // namespace motarfuse::resize
