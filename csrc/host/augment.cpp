#include "augment.h"

#include <algorithm>
#include <cstring>

#include "vector_code.h"

namespace motarfuse::augment {
namespace {

struct Box {
  int64_t top, left, height, width;
  explicit Box(const double* sides)
      : top(static_cast<int64_t>(sides[0])),
        left(static_cast<int64_t>(sides[1])),
        height(static_cast<int64_t>(sides[2])),
        width(static_cast<int64_t>(sides[3])) {}
  bool fits(int64_t rows, int64_t columns) const {
    return height == 0 || (top >= 0 && left >= 0 && height > 0 && width > 0 && height <= rows - top &&
                           width <= columns - left);
  }
  bool has_row(int64_t y) const { return y >= top && y < top + height; }
};

bool share(double value) { return value >= 0 && value < 1; }

// Where a piece that leaves `free` pixels begins.
int64_t place(double value, int64_t free) { return static_cast<int64_t>(value * static_cast<double>(free + 1)); }

// A row of the image, mirrored and moved right by dx; black where nothing comes from.
MOTARFUSE_INLINE void move_row(const uint8_t* MOTARFUSE_RESTRICT source, int64_t width, bool flip, int64_t dx,
                               uint8_t* MOTARFUSE_RESTRICT out) {
  const int64_t begin = std::max<int64_t>(dx, 0), end = width + std::min<int64_t>(dx, 0), count = end - begin;
  std::memset(out, 0, static_cast<size_t>(begin));
  if (flip) {
    const uint8_t* last = source + (width - 1 - (begin - dx));
    uint8_t* target = out + begin;
    for (int64_t x = 0; x < count; ++x) target[x] = last[-x];
  } else {
    std::memcpy(out + begin, source + (begin - dx), static_cast<size_t>(count));
  }
  std::memset(out + end, 0, static_cast<size_t>(width - end));
}

// Stripes of two colours, as _stripes of transforms.py.
struct Stripes {
  explicit Stripes(const double* uniform)
      : step_y(static_cast<int64_t>(uniform[6] * 8)),
        step_x(static_cast<int64_t>(uniform[7] * 8)),
        period(4 * (2 + static_cast<int64_t>(uniform[8] * 16))) {
    for (int k = 0; k < 6; ++k) color[k / 3][k % 3] = static_cast<uint8_t>(uniform[k] * 256);
  }
  void row(int64_t y, int64_t width, int channel, uint8_t* out) const {
    for (int64_t x = 0; x < width; ++x) out[x] = color[((step_y * y + step_x * x) / period) % 2][channel];
  }
  int64_t step_y, step_x, period;
  uint8_t color[2][3];
};

MOTARFUSE_INLINE uint32_t row_sum(const uint8_t* MOTARFUSE_RESTRICT row, int64_t width) {
  uint32_t sum = 0;
  for (int64_t x = 0; x < width; ++x) sum += row[x];
  return sum;
}

MOTARFUSE_INLINE void normalize_row(const uint8_t* MOTARFUSE_RESTRICT row, int64_t width, float scale, float shift,
                                    float* MOTARFUSE_RESTRICT out) {
  for (int64_t x = 0; x < width; ++x) out[x] = static_cast<float>(row[x]) * scale + shift;
}

MOTARFUSE_INLINE float clamp_byte(float value) {
  const float low = value < 0.0f ? 0.0f : value;
  return low > 255.0f ? 255.0f : low;
}

// Row y of the three channels through the colour matrix.
MOTARFUSE_INLINE void recolor_row(const uint8_t* MOTARFUSE_RESTRICT red, const uint8_t* MOTARFUSE_RESTRICT green,
                                  const uint8_t* MOTARFUSE_RESTRICT blue, int64_t width, const float* matrix,
                                  float offset, float scale, float shift, float* MOTARFUSE_RESTRICT out) {
  const float from_red = matrix[0], from_green = matrix[1], from_blue = matrix[2];
  for (int64_t x = 0; x < width; ++x) {
    float mixed = static_cast<float>(red[x]) * from_red;
    mixed = mixed + static_cast<float>(green[x]) * from_green;
    mixed = mixed + static_cast<float>(blue[x]) * from_blue;
    mixed = mixed + offset;
    out[x] = clamp_byte(mixed) * scale + shift;
  }
}

// Flip, shift and occluder: bytes of the whole image, and the sum of each channel if `sums` is given.
MOTARFUSE_INLINE void place_pixels(const Batch& batch, int64_t index, const Parameters& p, uint8_t* moved,
                                   int64_t* sums) {
  const int64_t height = batch.height, width = batch.width, area = height * width;
  const bool turned = p.turned >= 0, flip = !turned && p.flip != 0;
  const uint8_t* source = batch.pixels + index * 3 * area;
  int64_t dy = static_cast<int64_t>(p.shift_y), dx = static_cast<int64_t>(p.shift_x);
  if (turned) {
    source = batch.turned + (static_cast<int64_t>(p.turned) * batch.frames + index % batch.frames) * 3 * area;
    dy = dx = 0;
  }
  const Box box(p.occluder);
  const Stripes stripes(p.texture);
  const uint8_t* donor = nullptr;
  if (box.height > 0 && p.occluder_from_batch != 0) {
    const int64_t from = (index + static_cast<int64_t>(p.donor) * batch.frames) % batch.images;
    donor = batch.pixels + from * 3 * area + place(p.donor_y, height - box.height) * width +
            place(p.donor_x, width - box.width);
  }
  for (int channel = 0; channel < 3; ++channel) {
    const uint8_t* plane = source + channel * area;
    uint8_t* rows = moved + channel * area;
    int64_t sum = 0;
    for (int64_t y = 0; y < height; ++y) {
      uint8_t* row = rows + y * width;
      if (y - dy >= 0 && y - dy < height) {
        move_row(plane + (y - dy) * width, width, flip, dx, row);
      } else {
        std::memset(row, 0, static_cast<size_t>(width));
      }
      if (box.has_row(y)) {
        if (donor != nullptr) {
          std::memcpy(row + box.left, donor + channel * area + (y - box.top) * width, static_cast<size_t>(box.width));
        } else {
          stripes.row(y - box.top, box.width, channel, row + box.left);
        }
      }
      if (sums != nullptr) sum += row_sum(row, width);
    }
    if (sums != nullptr) sums[channel] = sum;
  }
}

}  // namespace

const char* problem(const Batch& batch) {
  const int64_t height = batch.height, width = batch.width;
  for (int64_t clip = 0; clip < batch.images / batch.frames; ++clip) {
    const Parameters& p = batch.parameters[clip];
    if (!(p.shift_y > -height && p.shift_y < height && p.shift_x > -width && p.shift_x < width))
      return "a shift moves an image out of itself";
    if (!(p.turned >= -1 && p.turned < batch.turned_clips)) return "there are fewer turned images";
    if (!Box(p.occluder).fits(height, width) || !Box(p.erasing).fits(height, width))
      return "a rectangle leaves its image";
    if (!(p.donor >= 0 && p.donor <= batch.images)) return "a donor is none of the batch";
    if (!share(p.donor_y) || !share(p.donor_x) || !share(p.noise_y) || !share(p.noise_x))
      return "a place is not in [0, 1)";
    if (!std::all_of(p.texture, p.texture + 9, share)) return "a texture is not in [0, 1)";
  }
  return nullptr;
}

MOTARFUSE_CLONES void vary(const Batch& batch, int64_t index, Scratch& scratch) {
  const int64_t height = batch.height, width = batch.width, area = height * width;
  const Parameters& p = batch.parameters[index / batch.frames];
  const bool color = p.color != 0;
  uint8_t* moved = scratch.pixels.data();
  int64_t sums[3];
  place_pixels(batch, index, p, moved, color ? sums : nullptr);
  float matrix[9], offset = 0.0f;
  if (color) {
    double mean = static_cast<double>(sums[0]) * 0.299;
    mean = mean + static_cast<double>(sums[1]) * 0.587;
    mean = mean + static_cast<double>(sums[2]) * 0.114;
    offset = static_cast<float>(p.offset * (mean / static_cast<double>(area)));
    for (int k = 0; k < 9; ++k) matrix[k] = static_cast<float>(p.matrix[k]);
  }
  const Box erased(p.erasing);
  const int64_t noise_top = place(p.noise_y, height - erased.height);
  const int64_t noise_left = place(p.noise_x, width - erased.width);
  float* out = batch.out + index * 3 * area;
  for (int channel = 0; channel < 3; ++channel) {
    const float scale = batch.scale[channel], shift = batch.shift[channel];
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* row = moved + y * width;
      float* result = out + channel * area + y * width;
      if (color) {
        recolor_row(row, row + area, row + 2 * area, width, matrix + 3 * channel, offset, scale, shift, result);
      } else {
        normalize_row(row + channel * area, width, scale, shift, result);
      }
      if (!erased.has_row(y)) continue;
      float* hole = result + erased.left;
      if (batch.noise != nullptr) {
        std::memcpy(hole, batch.noise + channel * area + (noise_top + y - erased.top) * width + noise_left,
                    static_cast<size_t>(erased.width) * sizeof(float));
      } else {
        std::fill(hole, hole + erased.width, 0.0f);
      }
    }
  }
}

MOTARFUSE_CLONES void normalize(const uint8_t* pixels, int64_t area, const float* scale, const float* shift,
                                float* out) {
  for (int channel = 0; channel < 3; ++channel)
    normalize_row(pixels + channel * area, area, scale[channel], shift[channel], out + channel * area);
}

}  // namespace motarfuse::augment
