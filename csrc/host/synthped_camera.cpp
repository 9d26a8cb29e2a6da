// SynthPed: colours of a scene -> the image that a camera takes of it.

#include "synthped_raster.h"

#include <algorithm>
#include <cstring>

namespace motarfuse::synthped {
namespace {

// Symmetric filter along rows, border clamped; `in` has rows of `stride`, `out` is another array without gaps.
MOTARFUSE_CLONES void filter_rows(const float* in, float* out, float* padded, int height, int width, int stride,
                                  const float* k, int radius) {
  for (int y = 0; y < height; ++y) {
    const float* line = in + static_cast<size_t>(y) * stride;
    float* result = out + static_cast<size_t>(y) * width;
    for (int i = 0; i < radius; ++i) padded[i] = line[0];
    std::memcpy(padded + radius, line, sizeof(float) * width);
    for (int i = 0; i < radius; ++i) padded[radius + width + i] = line[width - 1];
    const float* m = padded + radius;
    if (radius == 1) {
      for (int x = 0; x < width; ++x) result[x] = m[x] * k[0] + (m[x - 1] + m[x + 1]) * k[1];
    } else {
      for (int x = 0; x < width; ++x)
        result[x] = ((m[x] * k[0] + (m[x - 1] + m[x + 1]) * k[1]) + (m[x - 2] + m[x + 2]) * k[2]) +
                    (m[x - 3] + m[x + 3]) * k[3];
    }
  }
}

MOTARFUSE_CLONES void filter_columns(const float* in, float* out, int height, int width, const float* k, int radius) {
  for (int y = 0; y < height; ++y) {
    const float* at[7];
    for (int i = -radius; i <= radius; ++i)
      at[3 + i] = in + static_cast<size_t>(std::min(std::max(y + i, 0), height - 1)) * width;
    float* result = out + static_cast<size_t>(y) * width;
    if (radius == 1) {
      for (int x = 0; x < width; ++x) result[x] = at[3][x] * k[0] + (at[2][x] + at[4][x]) * k[1];
    } else {
      for (int x = 0; x < width; ++x)
        result[x] = ((at[3][x] * k[0] + (at[2][x] + at[4][x]) * k[1]) + (at[1][x] + at[5][x]) * k[2]) +
                    (at[0][x] + at[6][x]) * k[3];
    }
  }
}

MOTARFUSE_CLONES void illuminate(const Response& response, const float* MOTARFUSE_RESTRICT smooth,
                                 const Canvas& canvas) {
  const Response r = response;
  for (int y = 0; y < canvas.height; ++y) {
    const float fy = static_cast<float>(y) + 0.5f;
    const size_t at = static_cast<size_t>(y) * canvas.stride;
    float *MOTARFUSE_RESTRICT red = canvas.plane[0] + at, *MOTARFUSE_RESTRICT green = canvas.plane[1] + at,
                              *MOTARFUSE_RESTRICT blue = canvas.plane[2] + at;
    const float row_light = r.light_base + fy * r.light_y;
    for (int x = 0; x < canvas.width; ++x) {
      const float fx = static_cast<float>(x) + 0.5f;
      const float n = texel(smooth, fx * r.dapple_scale + r.dapple_x, fy * r.dapple_scale + r.dapple_y);
      const float light = (row_light + fx * r.light_x) * (1.0f - clamp01(n * r.dapple_gain + r.dapple_bias) * r.dapple);
      red[x] = red[x] * light;
      green[x] = green[x] * light;
      blue[x] = blue[x] * light;
    }
  }
}

MOTARFUSE_CLONES void sharpen_plane(const float* value, const float* soft, float* out, float amount, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = value[i] + (value[i] - soft[i]) * amount;
}

MOTARFUSE_CLONES void respond(const Response& response, const float* MOTARFUSE_RESTRICT smooth,
                              const float* MOTARFUSE_RESTRICT white, const uint8_t* curve, const Canvas& canvas,
                              float* MOTARFUSE_RESTRICT luma, int32_t* MOTARFUSE_RESTRICT index, uint8_t* image) {
  const Response r = response;
  const int width = canvas.width;
  for (int y = 0; y < canvas.height; ++y) {
    const float fy = static_cast<float>(y);
    const size_t at = static_cast<size_t>(y) * width;
    const float *red = canvas.plane[0] + at, *green = canvas.plane[1] + at, *blue = canvas.plane[2] + at;
    for (int x = 0; x < width; ++x)
      luma[x] = texel(white, static_cast<float>(x) + r.noise_x, fy + r.noise_y) * r.noise_luma;
    for (int c = 0; c < 3; ++c) {
      const float m0 = r.matrix[c][0], m1 = r.matrix[c][1], m2 = r.matrix[c][2], offset = r.offset[c];
      const float shift = static_cast<float>(c * 61 + 17);
      for (int x = 0; x < width; ++x) {
        const float fx = static_cast<float>(x);
        const float chroma =
            texel(smooth, fx * 4.0f + r.noise_x + shift, fy * 4.0f + r.noise_y + shift) * r.noise_chroma;
        const float value = ((red[x] * m0 + green[x] * m1) + blue[x] * m2) + offset;
        const float noisy = (value + luma[x]) + chroma;
        index[x] = static_cast<int32_t>(least(most(noisy * 4.0f, 0.0f), static_cast<float>(kCurveSize - 1)));
      }
      for (int x = 0; x < width; ++x) image[3 * (at + x) + c] = curve[index[x]];
    }
  }
}

MOTARFUSE_CLONES void resample_rows(const float* in, float* out, int height, int width, const int32_t* first,
                                    const int32_t* second, const float* weight) {
  for (int y = 0; y < height; ++y) {
    const float* line = in + static_cast<size_t>(y) * width;
    float* result = out + static_cast<size_t>(y) * width;
    for (int x = 0; x < width; ++x) {
      const float a = line[first[x]], b = line[second[x]];
      result[x] = a + (b - a) * weight[x];
    }
  }
}

MOTARFUSE_CLONES void resample_columns(const float* in, float* out, int height, int width, const int32_t* first,
                                       const int32_t* second, const float* weight) {
  for (int y = 0; y < height; ++y) {
    const float* a = in + static_cast<size_t>(first[y]) * width;
    const float* b = in + static_cast<size_t>(second[y]) * width;
    float* result = out + static_cast<size_t>(y) * width;
    for (int x = 0; x < width; ++x) result[x] = a[x] + (b[x] - a[x]) * weight[y];
  }
}

}  // namespace

void finish(const Response& r, const uint8_t* curve, const Lattice& across, const Lattice& down, const Canvas& canvas,
            std::vector<float>& scratch, uint8_t* image) {
  const int height = canvas.height, width = canvas.width;
  const size_t n = static_cast<size_t>(height) * width;
  float *a = scratch.data(), *b = a + n, *padded = b + n;
  constexpr float kSoft[2] = {0.5f, 0.25f};
  illuminate(r, canvas.tile(0), canvas);
  // From here on the planes have no gaps between their rows.
  for (float* plane : canvas.plane) {
    filter_rows(plane, a, padded, height, width, canvas.stride, r.kernel_x, 3);
    filter_columns(a, plane, height, width, r.kernel_y, 3);
    resample_rows(plane, a, height, width, across.first, across.second, across.weight);
    resample_columns(a, plane, height, width, down.first, down.second, down.weight);
    filter_rows(plane, a, padded, height, width, width, kSoft, 1);
    filter_columns(a, b, height, width, kSoft, 1);
    sharpen_plane(plane, b, plane, r.sharpen, n);
  }
  std::vector<int32_t> index(width);
  respond(r, canvas.tile(0), canvas.tile(1), curve, canvas, padded, index.data(), image);
}

}  // namespace motarfuse::synthped
