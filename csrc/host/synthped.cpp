// SynthPed's rasteriser: primitives of a scene -> pixels and part labels.
//
// Every value is fp32, every operation is one of + - * / floor min max or an integer operation, in the order in
// which raster_numpy.py writes it, and the file is compiled without contraction: both give the same bits.

#if defined(__GNUC__) && !defined(__clang__)
// Changes no value; lets floor become a vector instruction.
#pragma GCC optimize("no-trapping-math")
#endif

#include "synthped.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// One binary for every x86-64, with the wide loops where the machine has them. FMA is not asked for.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define MOTARFUSE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOTARFUSE_CLONES
#endif
#define MOTARFUSE_RESTRICT __restrict__
#define MOTARFUSE_INLINE inline __attribute__((always_inline))

namespace py = pybind11;

namespace motarfuse::synthped {
namespace {

// By value: the references of std::min keep a loop from becoming vector instructions.
MOTARFUSE_INLINE float least(float a, float b) { return b < a ? b : a; }
MOTARFUSE_INLINE float most(float a, float b) { return a < b ? b : a; }
MOTARFUSE_INLINE float clamp01(float x) { return least(most(x, 0.0f), 1.0f); }

// 1 at whole numbers, -1 half-way between them, linear.
MOTARFUSE_INLINE float triangle(float x) { return std::fabs(x - std::floor(x) - 0.5f) * 4.0f - 1.0f; }

// The nearest texel of a periodic tile.
MOTARFUSE_INLINE float texel(const float* tile, float u, float v) {
  const int iu = static_cast<int>(std::floor(u)) & (kTile - 1);
  const int iv = static_cast<int>(std::floor(v)) & (kTile - 1);
  return tile[iv * kTile + iu];
}

// Rows are drawn in whole vectors: what lies behind the last column of a row, or beside a primitive, has no cover.
constexpr int kVector = 16;
MOTARFUSE_INLINE int whole(int n) { return (n + kVector - 1) & ~(kVector - 1); }

// What one row of one primitive needs; each array has one entry a pixel.
struct Row {
  explicit Row(int stride) : storage(static_cast<size_t>(stride) * 8) {
    float* p = storage.data();
    for (float** field : {&cover, &outside, &shade, &u, &v, &f, &g, &h}) {
      *field = p;
      p += stride;
    }
  }
  std::vector<float> storage;
  float *cover, *outside, *shade, *u, *v, *f, *g, *h;
};

struct Canvas {
  int height, width, stride;
  float* plane[3];   // (height, stride) each, sRGB values 0..255
  uint8_t* visible;  // (height, stride) labels with occluders
  uint8_t* amodal;   // (height, stride) labels of the subject alone
  const float* tiles;
  const float* tile(int k) const { return tiles + k * kTile * kTile; }
};

// The functions below copy what they read through a reference, so that the compiler need not fear that a store into a
// row changes it.
MOTARFUSE_CLONES void sweep_row(const Primitive& primitive, int x0, int n, int y, Row& row) {
  const Primitive p = primitive;
  const float py = static_cast<float>(y) + 0.5f - p.start_y;
  const float dw1 = p.width[1] - p.width[0], dw2 = p.width[2] - p.width[1];
  const float dw3 = p.width[3] - p.width[2], dw4 = p.width[4] - p.width[3];
  const float dc1 = p.centre[1] - p.centre[0], dc2 = p.centre[2] - p.centre[1];
  const float dc3 = p.centre[3] - p.centre[2], dc4 = p.centre[4] - p.centre[3];
  const float turn = p.u_flat != 0.0f ? 0.0f : 4.0f;  // an angle wraps into [-2, 2), a flat coordinate does not
  float *MOTARFUSE_RESTRICT cover = row.cover, *MOTARFUSE_RESTRICT outside = row.outside,
                            *MOTARFUSE_RESTRICT shade = row.shade;
  float *MOTARFUSE_RESTRICT u_out = row.u, *MOTARFUSE_RESTRICT v_out = row.v;
  n = whole(n);
  for (int i = 0; i < n; ++i) {
    const float px = static_cast<float>(x0 + i) + 0.5f - p.start_x;
    const float along = px * p.axis_x + py * p.axis_y;
    const float lateral = px * p.axis_y - py * p.axis_x;
    const float inside = least(most(along, 0.0f), p.length);
    const float k = inside * p.station_scale;
    const float f1 = least(k, 1.0f), f2 = clamp01(k - 1.0f), f3 = clamp01(k - 2.0f), f4 = most(k - 3.0f, 0.0f);
    const float half = (((p.width[0] + dw1 * f1) + dw2 * f2) + dw3 * f3) + dw4 * f4;
    const float mid = (((p.centre[0] + dc1 * f1) + dc2 * f2) + dc3 * f3) + dc4 * f4;
    const float s = lateral - mid;
    const float over = (along - inside) * p.cap_inverse;
    // The distance to the outline to first order, without a root: (d - half) (d + half) / (2 half).
    const float inverse = 1.0f / most(half, 0.25f);
    const float distance = ((s * s + over * over) - half * half) * (inverse * 0.5f);
    cover[i] = clamp01(0.5f - distance * p.soft_inverse) * p.opacity;
    outside[i] = distance;
    const float q = least(most(s * inverse, -1.0f), 1.0f);
    const float qq = q * q, q4 = qq * qq;
    const float facing = 1.0f - 0.5f * (qq + q4 * q4);  // sqrt(1 - q^2) within 0.06
    shade[i] = p.ambient + most(q * p.light_lateral + facing * p.light_depth, 0.0f);
    const float angle = q * (0.64f + 0.36f * qq);  // 2/pi asin(q) within 0.04
    const float u = (p.u0 + angle * p.u_angle) + s * p.u_flat;
    u_out[i] = u - std::floor((u + 2.0f) * 0.25f) * turn;
    v_out[i] = along * p.v_scale + p.v0;
  }
}

MOTARFUSE_CLONES void plane_row(const Primitive& primitive, int x0, int n, int y, Row& row) {
  const Primitive p = primitive;
  const float fy = static_cast<float>(y) + 0.5f;
  const float depth = 1.0f / most(fy - p.width[0], p.width[2]);
  const bool flat = p.width[1] == 0.0f;
  const float u_scale = flat ? p.centre[1] : depth * p.centre[1];
  const float v_value = flat ? fy * p.v_scale + p.v0 : depth * p.width[1] + p.v0;
  const float tone = p.ambient + fy * p.light_depth;
  float *MOTARFUSE_RESTRICT cover = row.cover, *MOTARFUSE_RESTRICT outside = row.outside,
                            *MOTARFUSE_RESTRICT shade = row.shade;
  float *MOTARFUSE_RESTRICT u_out = row.u, *MOTARFUSE_RESTRICT v_out = row.v;
  n = whole(n);
  for (int i = 0; i < n; ++i) {
    const float fx = static_cast<float>(x0 + i) + 0.5f;
    const float inward = (fx - p.start_x) * p.axis_x + (fy - p.start_y) * p.axis_y;
    cover[i] = clamp01(inward * p.soft_inverse + 0.5f) * p.opacity;
    outside[i] = 1.0e6f;
    shade[i] = tone + fx * p.light_lateral;
    u_out[i] = (fx - p.centre[0]) * u_scale + p.u0;
    v_out[i] = v_value;
  }
}

// f mixes colour 1 into colour 0, then g mixes colour 2 into that; h multiplies the cover.
MOTARFUSE_CLONES void texture_row(const Primitive& primitive, const float* MOTARFUSE_RESTRICT smooth,
                                  const float* MOTARFUSE_RESTRICT white, const float* MOTARFUSE_RESTRICT cell, int n,
                                  Row& row) {
  const Primitive p = primitive;
  const float t0 = p.t[0], t1 = p.t[1], t2 = p.t[2], t3 = p.t[3], t4 = p.t[4], t5 = p.t[5];
  const float *MOTARFUSE_RESTRICT u = row.u, *MOTARFUSE_RESTRICT v = row.v;
  float *MOTARFUSE_RESTRICT f = row.f, *MOTARFUSE_RESTRICT g = row.g, *MOTARFUSE_RESTRICT h = row.h;
  n = whole(n);
  for (int i = 0; i < n; ++i) {
    f[i] = 0.0f;
    g[i] = 0.0f;
    h[i] = 1.0f;
  }
  switch (static_cast<int>(p.texture)) {
    case kStripeV:
      for (int i = 0; i < n; ++i) f[i] = clamp01(triangle(v[i] * t0 + t3) * t2 + t1);
      break;
    case kStripeU:
      for (int i = 0; i < n; ++i) f[i] = clamp01(triangle(u[i] * t0 + t3) * t2 + t1);
      break;
    case kCheck:
      for (int i = 0; i < n; ++i) {
        const float a = clamp01(triangle(v[i] * t0) * t2 + t1), b = clamp01(triangle(u[i] * t3) * t2 + t1);
        f[i] = (a + b) * 0.5f;
        g[i] = a * b * t4;
      }
      break;
    case kPrint:
      for (int i = 0; i < n; ++i) {
        const float du = std::fabs(std::fabs(u[i]) - t4);
        const float in = clamp01((t2 - du) * 12.0f) * clamp01((t1 - std::fabs(v[i] - t0)) * 80.0f);
        f[i] = in;
        g[i] = in * clamp01(texel(cell, u[i] * t3 + t5, v[i] * t3 * 4.0f + t5) * 4.0f + 0.5f);
      }
      break;
    case kTwoTone:
      for (int i = 0; i < n; ++i) {
        f[i] = clamp01((v[i] - t0) * t1 + 0.5f);
        g[i] = clamp01((t2 - std::fabs(v[i] - t0)) * t1 + 0.5f);
      }
      break;
    case kMottle:
      for (int i = 0; i < n; ++i) {
        const float mu = u[i] * t0 + t3, mv = v[i] * t1 + t4;
        f[i] = clamp01(texel(smooth, mu, mv) * t2 + t5);
        g[i] = clamp01(texel(smooth, mu + 97.0f, mv + 31.0f) * t2 + t5);
      }
      break;
    case kOpen:
      for (int i = 0; i < n; ++i) {
        const float du = std::fabs(u[i]), half = t0 + t1 * most(v[i], 0.0f);
        f[i] = clamp01((half - du) * t2 + 0.5f);
        g[i] = clamp01((t3 - std::fabs(du - half)) * t2 + 0.5f) * t4;
      }
      break;
    case kFace:
      // colour 0 skin, 1 hair, 2 eyes, glasses; t0 hair line, t1 half angle of the face, t2 nape, t3 glasses,
      // t4 beard, t5 label of the hair
      for (int i = 0; i < n; ++i) {
        const float du = std::fabs(u[i]), vi = v[i];
        const float front = clamp01((t0 - vi) * 14.0f + 0.5f);
        const float sides = least(clamp01((du - t1) * 7.0f + 0.5f), clamp01((t2 - vi) * 14.0f + 0.5f));
        const float chin = least(clamp01((vi - 0.74f) * 14.0f + 0.5f), clamp01((1.0f - du) * 8.0f)) * t4;
        f[i] = most(most(front, sides), chin);
        const float ex = (du - 0.30f) * 7.5f, ey = (vi - 0.53f) * 13.0f;
        const float eye = clamp01(1.3f - (ex * ex + ey * ey)) * 0.55f;
        const float gx = (du - 0.30f) * 3.4f;
        const float glasses = clamp01(2.0f - (gx * gx + ey * ey) * 2.0f) * t3;
        const float mx = du * 4.0f, my = (vi - 0.80f) * 18.0f;
        const float mouth = clamp01(1.2f - (mx * mx + my * my)) * 0.3f;
        g[i] = most(most(eye, glasses), mouth) * (1.0f - f[i]);
      }
      break;
    case kSide:
      for (int i = 0; i < n; ++i) f[i] = clamp01((t0 - std::fabs(std::fabs(u[i]) - 1.0f)) * t2 + 0.5f);
      break;
    case kGround:
      for (int i = 0; i < n; ++i) {
        const float a = texel(smooth, u[i] * t0 + p.noise_x, v[i] * t0 + p.noise_y) * t1;
        const float b = texel(white, u[i] * t2 + p.noise_y, v[i] * t2 + p.noise_x) * t3;
        f[i] = clamp01((a + b) + 0.5f);
        g[i] = clamp01(texel(smooth, u[i] * t4 + p.noise_y, v[i] * t4 + p.noise_x) * t5);
      }
      break;
    case kTiles:
    case kBrick: {
      const float stagger = static_cast<int>(p.texture) == kBrick ? 0.5f : 0.0f;
      for (int i = 0; i < n; ++i) {
        const float gv = v[i] * t1;
        const float course = std::floor(gv + 0.5f);
        const float gu = u[i] * t0 + (course - std::floor(course * 0.5f) * 2.0f) * stagger;
        const float line_u = clamp01((triangle(gu) - t2) * t3), line_v = clamp01((triangle(gv + 0.5f) - t2) * t3);
        const float bed = texel(white, std::floor(gu) + p.noise_x, course + p.noise_y) * t4 +
                          texel(smooth, u[i] * t5 + p.noise_x, v[i] * t5 + p.noise_y) * 0.4f;
        f[i] = clamp01(bed + 0.3f);
        g[i] = most(line_u, line_v);
      }
      break;
    }
    case kLeaves:
      for (int i = 0; i < n; ++i) {
        const float lu = u[i] * t0 + p.noise_x, lv = v[i] * t0 + p.noise_y;
        const float a = texel(cell, lu, lv) + texel(smooth, u[i] * t4 + p.noise_y, v[i] * t4 + p.noise_x) * t5;
        f[i] = clamp01((a - t1) * t3);
        g[i] = clamp01((texel(cell, lu + 77.0f, lv + 131.0f) - t2) * t3);
      }
      break;
    case kFoliage:
      for (int i = 0; i < n; ++i) {
        const float lu = u[i] * t0 + p.noise_x, lv = v[i] * t0 + p.noise_y;
        const float a = texel(smooth, u[i] * t4 + p.noise_y, v[i] * t4 + p.noise_x);
        h[i] = clamp01((texel(cell, lu, lv) * 0.6f + a - t1) * t3);
        f[i] = clamp01(texel(cell, lu + 40.0f, lv + 90.0f) * 0.7f + 0.5f);
        g[i] = clamp01((texel(cell, lu + 77.0f, lv + 131.0f) - t2) * t3);
      }
      break;
    default:
      break;
  }
  if (p.wrinkle != 0.0f) {
    float* MOTARFUSE_RESTRICT shade = row.shade;
    for (int i = 0; i < n; ++i)
      shade[i] =
          shade[i] * (1.0f + p.wrinkle * texel(smooth, u[i] * p.noise_u + p.noise_x, v[i] * p.noise_v + p.noise_y));
  }
}

MOTARFUSE_CLONES void composite_row(const Primitive& primitive, int n, Row& row, float* const* planes,
                                    uint8_t* MOTARFUSE_RESTRICT visible, uint8_t* MOTARFUSE_RESTRICT amodal) {
  const Primitive p = primitive;
  const float *MOTARFUSE_RESTRICT f = row.f, *MOTARFUSE_RESTRICT g = row.g, *MOTARFUSE_RESTRICT h = row.h;
  const float *MOTARFUSE_RESTRICT shade = row.shade, *MOTARFUSE_RESTRICT v = row.v;
  float *MOTARFUSE_RESTRICT cover = row.cover, *MOTARFUSE_RESTRICT keep = row.outside;
  n = whole(n);
  // A limb darkens what it nearly touches, on the same body only.
  for (int i = 0; i < n; ++i) {
    const float near =
        clamp01(1.0f - keep[i] * p.contact_inverse) * (clamp01(v[i] * p.contact_gain + p.contact_bias) * p.contact);
    keep[i] = amodal[i] != 0 ? 1.0f - near : 1.0f;
    cover[i] = cover[i] * h[i];
  }
  for (int c = 0; c < 3; ++c) {
    const float c0 = p.colour[0][c], c1 = p.colour[1][c], c2 = p.colour[2][c];
    float* MOTARFUSE_RESTRICT plane = planes[c];
    for (int i = 0; i < n; ++i) {
      const float a = c0 + (c1 - c0) * f[i];
      const float b = (a + (c2 - a) * g[i]) * shade[i];
      const float below = plane[i] * keep[i];
      plane[i] = below + (b - below) * cover[i];
    }
  }
  const int label = static_cast<int>(p.label);
  if (label == kNoLabel) return;
  // A head is two parts: where its texture shows colour 1 it is hair.
  const uint8_t first = static_cast<uint8_t>(label);
  const uint8_t second = static_cast<int>(p.texture) == kFace ? static_cast<uint8_t>(p.t[5]) : first;
  for (int i = 0; i < n; ++i) {
    const uint8_t value = f[i] >= 0.5f ? second : first;
    visible[i] = cover[i] >= 0.5f ? value : visible[i];
  }
  if (static_cast<int>(p.layer) != kLayerSubject) return;
  for (int i = 0; i < n; ++i) {
    const uint8_t value = f[i] >= 0.5f ? second : first;
    amodal[i] = cover[i] >= 0.5f ? value : amodal[i];
  }
}

// The columns of a row that a sweep can reach, conservatively: a slanting limb fills little of its box.
void span(const Primitive& p, int y, int& x0, int& x1) {
  if (std::fabs(p.axis_y) < 0.2f) return;
  float half = 0.0f, shift = 0.0f;
  for (int k = 0; k < kStations; ++k) {
    half = std::max(half, p.width[k]);
    shift = std::max(shift, std::fabs(p.centre[k]));
  }
  const float edge = 1.0f / p.soft_inverse, shade = p.contact > 0.0f ? 1.0f / p.contact_inverse : 0.0f;
  const float reach = (half + shift + std::max(edge, shade) + 1.0f) / std::fabs(p.axis_y);
  const float middle = p.start_x + (static_cast<float>(y) + 0.5f - p.start_y) * p.axis_x / p.axis_y;
  x0 = std::max(x0, static_cast<int>(std::floor(std::max(middle - reach, -1.0f))));
  x1 = std::min(x1, static_cast<int>(std::ceil(std::min(middle + reach, 1.0e6f))) + 1);
}

void draw(const Primitive* primitives, const int32_t* boxes, int count, const Canvas& canvas, Row& row) {
  for (int k = 0; k < count; ++k) {
    const Primitive& p = primitives[k];
    const int shape = static_cast<int>(p.shape);
    if (shape == kShapeNone) continue;
    const int left = std::max(boxes[4 * k], 0), top = std::max(boxes[4 * k + 1], 0);
    const int right = std::min(boxes[4 * k + 2], canvas.width), bottom = std::min(boxes[4 * k + 3], canvas.height);
    for (int y = top; y < bottom; ++y) {
      int x0 = left, x1 = right;
      if (shape == kShapeSweep) span(p, y, x0, x1);
      if (x0 >= x1) continue;
      if (shape == kShapeSweep) {
        sweep_row(p, x0, x1 - x0, y, row);
      } else {
        plane_row(p, x0, x1 - x0, y, row);
      }
      texture_row(p, canvas.tile(0), canvas.tile(1), canvas.tile(2), x1 - x0, row);
      const size_t at = static_cast<size_t>(y) * canvas.stride + x0;
      float* out[3] = {canvas.plane[0] + at, canvas.plane[1] + at, canvas.plane[2] + at};
      composite_row(p, x1 - x0, row, out, canvas.visible + at, canvas.amodal + at);
    }
  }
}

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

// Bilinear resampling onto a coarser lattice and back, one axis at a time: first[i], second[i] are the lattice
// points around i, weight[i] the share of the second.
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

struct Lattice {
  const int32_t *first, *second;
  const float* weight;
};

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

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("synthped.render: ") + what);
}

py::tuple render(const Array<float>& primitives, const Array<int32_t>& boxes, const Array<float>& responses,
                 const Array<uint8_t>& curves, const Array<int32_t>& lattice_x, const Array<float>& weight_x,
                 const Array<int32_t>& lattice_y, const Array<float>& weight_y, const Array<float>& tiles, int height,
                 int width, int threads) {
  require(primitives.ndim() == 3 && primitives.shape(2) == kNumFields, "primitives must be (n, p, fields) float32");
  const int64_t images = primitives.shape(0);
  const int count = static_cast<int>(primitives.shape(1));
  require(height >= 1 && width >= 1 && threads >= 1, "height, width and threads must be positive");
  require(boxes.ndim() == 3 && boxes.shape(0) == images && boxes.shape(1) == count && boxes.shape(2) == 4,
          "boxes must be (n, p, 4) int32");
  require(responses.ndim() == 2 && responses.shape(0) == images && responses.shape(1) == kNumResponse,
          "responses must be (n, fields) float32");
  require(curves.ndim() == 2 && curves.shape(0) == images && curves.shape(1) == kCurveSize,
          "curves must be (n, 1024) uint8");
  require(
      lattice_x.ndim() == 3 && lattice_x.shape(0) == images && lattice_x.shape(1) == 2 && lattice_x.shape(2) == width,
      "lattice_x must be (n, 2, width) int32");
  require(
      lattice_y.ndim() == 3 && lattice_y.shape(0) == images && lattice_y.shape(1) == 2 && lattice_y.shape(2) == height,
      "lattice_y must be (n, 2, height) int32");
  require(weight_x.ndim() == 2 && weight_x.shape(0) == images && weight_x.shape(1) == width,
          "weight_x must be (n, width) float32");
  require(weight_y.ndim() == 2 && weight_y.shape(0) == images && weight_y.shape(1) == height,
          "weight_y must be (n, height) float32");
  require(tiles.ndim() == 3 && tiles.shape(0) == kNumTiles && tiles.shape(1) == kTile && tiles.shape(2) == kTile,
          "tiles must be (3, 256, 256) float32");
  const int32_t *across = lattice_x.data(), *down = lattice_y.data();
  for (int64_t i = 0; i < lattice_x.size(); ++i)
    require(across[i] >= 0 && across[i] < width, "lattice_x has a column outside the image");
  for (int64_t i = 0; i < lattice_y.size(); ++i)
    require(down[i] >= 0 && down[i] < height, "lattice_y has a row outside the image");

  const size_t pixels = static_cast<size_t>(height) * width;
  Array<uint8_t> out({images, static_cast<int64_t>(height), static_cast<int64_t>(width), static_cast<int64_t>(3)});
  Array<uint8_t> visible({images, static_cast<int64_t>(height), static_cast<int64_t>(width)});
  Array<uint8_t> amodal({images, static_cast<int64_t>(height), static_cast<int64_t>(width)});
  uint8_t *out_data = out.mutable_data(), *visible_data = visible.mutable_data(), *amodal_data = amodal.mutable_data();
  const float *primitive_data = primitives.data(), *response_data = responses.data(), *tile_data = tiles.data();
  const float *weight_x_data = weight_x.data(), *weight_y_data = weight_y.data();
  const int32_t* box_data = boxes.data();
  const uint8_t* curve_data = curves.data();
  {
    py::gil_scoped_release release;
    std::atomic<int64_t> next{0};
    auto work = [&] {
      const int stride = whole(width) + kVector;
      const size_t drawn = static_cast<size_t>(height) * stride;
      std::vector<float> planes(drawn * 3), scratch(pixels * 2 + width + 8);
      std::vector<uint8_t> labels(drawn * 2);
      Row row(stride);
      for (int64_t i = next.fetch_add(1); i < images; i = next.fetch_add(1)) {
        std::fill(planes.begin(), planes.end(), 0.0f);
        std::fill(labels.begin(), labels.end(), uint8_t{0});
        const Canvas canvas{height,        width,
                            stride,        {planes.data(), planes.data() + drawn, planes.data() + 2 * drawn},
                            labels.data(), labels.data() + drawn,
                            tile_data};
        draw(reinterpret_cast<const Primitive*>(primitive_data + i * count * kNumFields), box_data + i * count * 4,
             count, canvas, row);
        for (int y = 0; y < height; ++y) {
          std::memcpy(visible_data + i * pixels + static_cast<size_t>(y) * width,
                      canvas.visible + static_cast<size_t>(y) * stride, width);
          std::memcpy(amodal_data + i * pixels + static_cast<size_t>(y) * width,
                      canvas.amodal + static_cast<size_t>(y) * stride, width);
        }
        const Lattice x_lattice{across + i * 2 * width, across + i * 2 * width + width, weight_x_data + i * width};
        const Lattice y_lattice{down + i * 2 * height, down + i * 2 * height + height, weight_y_data + i * height};
        finish(*reinterpret_cast<const Response*>(response_data + i * kNumResponse), curve_data + i * kCurveSize,
               x_lattice, y_lattice, canvas, scratch, out_data + i * pixels * 3);
      }
    };
    std::vector<std::thread> pool;
    const int64_t extra = std::min<int64_t>(threads, images) - 1;
    for (int64_t k = 0; k < extra; ++k) pool.emplace_back(work);
    work();
    for (std::thread& thread : pool) thread.join();
  }
  return py::make_tuple(out, visible, amodal);
}

}  // namespace
}  // namespace motarfuse::synthped

void bind_synthped(py::module_& m) {
  using namespace motarfuse::synthped;
  m.attr("synthped_revision") = kRevision;
  m.attr("synthped_fields") = kNumFields;
  m.attr("synthped_response_fields") = kNumResponse;
  m.def("synthped_render", &render, py::arg("primitives").noconvert(), py::arg("boxes").noconvert(),
        py::arg("responses").noconvert(), py::arg("curves").noconvert(), py::arg("lattice_x").noconvert(),
        py::arg("weight_x").noconvert(), py::arg("lattice_y").noconvert(), py::arg("weight_y").noconvert(),
        py::arg("tiles").noconvert(), py::arg("height"), py::arg("width"), py::arg("threads") = 1,
        "Draws scenes: (images (n, h, w, 3), visible labels (n, h, w), amodal labels (n, h, w)), all uint8.");
}
