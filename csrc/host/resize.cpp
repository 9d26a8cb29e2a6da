#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "vector_code.h"

namespace motarfuse::resize {
namespace {

constexpr int kPlaces = 22;
constexpr int32_t kHalf = 1 << (kPlaces - 1);

MOTARFUSE_INLINE uint8_t rounded(int32_t sum) {
  const int32_t value = sum >> kPlaces;
  return static_cast<uint8_t>(value > 255 ? 255 : value);
}

// The weights of one axis: result i is the sum over k of weight[i * taps + k] * source[first[i] + k], with equally many
// taps for all, those that reach over an edge being 0.
int64_t weights(int64_t from, int64_t to, std::vector<int32_t>& first, std::vector<int32_t>& weight) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), wide = std::max(scale, 1.0);
  const double sharpness = 1.0 / wide;
  const auto bounds = [&](int64_t i, double& centre, int64_t& begin, int64_t& end) {
    centre = (static_cast<double>(i) + 0.5) * scale;
    begin = std::max<int64_t>(static_cast<int64_t>(centre - wide + 0.5), 0);
    end = std::min<int64_t>(static_cast<int64_t>(centre + wide + 0.5), from);
  };
  double centre;
  int64_t begin, end, taps = 1;
  for (int64_t i = 0; i < to; ++i) {
    bounds(i, centre, begin, end);
    taps = std::max(taps, end - begin);
  }
  first.resize(to);
  weight.assign(to * taps, 0);
  std::vector<double> exact(taps);
  for (int64_t i = 0; i < to; ++i) {
    bounds(i, centre, begin, end);
    double total = 0.0;
    for (int64_t k = begin; k < end; ++k) {
      const double distance = std::fabs((static_cast<double>(k) - centre + 0.5) * sharpness);
      exact[k - begin] = distance < 1.0 ? 1.0 - distance : 0.0;
      total += exact[k - begin];
    }
    const int64_t start = std::min(begin, from - taps);
    first[i] = static_cast<int32_t>(start);
    for (int64_t k = begin; k < end; ++k) {
      const double share = total != 0.0 ? exact[k - begin] / total : exact[k - begin];
      weight[i * taps + k - start] = static_cast<int32_t>(0.5 + share * (1 << kPlaces));
    }
  }
  return taps;
}

// One row of four-byte pixels to `count` resized ones.
template <int kTaps>
MOTARFUSE_INLINE void across(const uint8_t* MOTARFUSE_RESTRICT row, const int32_t* MOTARFUSE_RESTRICT first,
                             const int32_t* MOTARFUSE_RESTRICT weight, int64_t taps, int64_t count,
                             uint8_t* MOTARFUSE_RESTRICT red, uint8_t* MOTARFUSE_RESTRICT green,
                             uint8_t* MOTARFUSE_RESTRICT blue) {
  const int64_t n = kTaps > 0 ? kTaps : taps;
  for (int64_t x = 0; x < count; ++x) {
    const uint8_t* pixel = row + 4 * first[x];
    const int32_t* share = weight + x * n;
    int32_t sum[4] = {kHalf, kHalf, kHalf, kHalf};
    for (int64_t k = 0; k < n; ++k) {
      for (int c = 0; c < 4; ++c) sum[c] += share[k] * pixel[4 * k + c];
    }
    red[x] = rounded(sum[0]);
    green[x] = rounded(sum[1]);
    blue[x] = rounded(sum[2]);
  }
}

// One row of one plane from the rows around it, which lie `stride` bytes apart.
template <int kTaps>
MOTARFUSE_INLINE void down(const uint8_t* MOTARFUSE_RESTRICT rows, int64_t stride,
                           const int32_t* MOTARFUSE_RESTRICT weight, int64_t taps, int64_t count,
                           uint8_t* MOTARFUSE_RESTRICT out) {
  const int64_t n = kTaps > 0 ? kTaps : taps;
  for (int64_t x = 0; x < count; ++x) {
    int32_t sum = kHalf;
    for (int64_t k = 0; k < n; ++k) sum += weight[k] * rows[k * stride + x];
    out[x] = rounded(sum);
  }
}

template <class Function>
MOTARFUSE_INLINE void with_taps(int64_t taps, const Function& function) {
  switch (taps) {
    case 2:
      return function(std::integral_constant<int, 2>());
    case 3:
      return function(std::integral_constant<int, 3>());
    case 4:
      return function(std::integral_constant<int, 4>());
    default:
      return function(std::integral_constant<int, 0>());
  }
}

}  // namespace

MOTARFUSE_CLONES void fit(const Source& source, int64_t height, int64_t width, Scratch& scratch, uint8_t* out) {
  const bool wider = source.width != width, higher = source.height != height;
  const int64_t taps_x = wider ? weights(source.width, width, scratch.first_across, scratch.weight_across) : 0;
  const int64_t taps_y = higher ? weights(source.height, height, scratch.first_down, scratch.weight_down) : 0;
  // Rows of the right width, the three planes of a row behind one another; straight to the result if that is all.
  const int64_t stride = higher ? 3 * width : width, plane = higher ? width : height * width;
  if (higher) scratch.planes.resize(static_cast<size_t>(source.height * stride));
  uint8_t* middle = higher ? scratch.planes.data() : out;
  scratch.row.resize(static_cast<size_t>(4 * source.width));
  for (int64_t y = 0; y < source.height; ++y) {
    const uint8_t* row = source.pixels + y * source.channels * source.width;
    if (source.channels == 3) {
      for (int64_t x = 0; x < source.width; ++x) std::memcpy(scratch.row.data() + 4 * x, row + 3 * x, 3);
      row = scratch.row.data();
    }
    uint8_t *red = middle + y * stride, *green = red + plane, *blue = green + plane;
    if (wider) {
      with_taps(taps_x, [&](auto known) MOTARFUSE_ALWAYS {
        across<known.value>(row, scratch.first_across.data(), scratch.weight_across.data(), taps_x, width, red, green,
                            blue);
      });
    } else {
      for (int64_t x = 0; x < width; ++x) {
        red[x] = row[4 * x];
        green[x] = row[4 * x + 1];
        blue[x] = row[4 * x + 2];
      }
    }
  }
  if (!higher) return;
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* rows = middle + scratch.first_down[y] * stride;
    for (int channel = 0; channel < 3; ++channel) {
      with_taps(taps_y, [&](auto known) MOTARFUSE_ALWAYS {
        down<known.value>(rows + channel * width, stride, scratch.weight_down.data() + y * taps_y, taps_y, width,
                          out + (channel * height + y) * width);
      });
    }
  }
}

}  // namespace motarfuse::resize
