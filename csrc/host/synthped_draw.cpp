// SynthPed: primitives of a scene -> colours and part labels.

#include "synthped_raster.h"

#include <algorithm>

namespace motarfuse::synthped {
namespace {

MOTARFUSE_INLINE void sweep_row(const Primitive& p, int x0, int n, int y, Row& row) {
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

MOTARFUSE_INLINE void plane_row(const Primitive& p, int x0, int n, int y, Row& row) {
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
MOTARFUSE_INLINE void texture_row(const Primitive& p, const float* MOTARFUSE_RESTRICT smooth,
                                  const float* MOTARFUSE_RESTRICT white, const float* MOTARFUSE_RESTRICT cell, int n,
                                  Row& row) {
  const float t0 = p.t[0], t1 = p.t[1], t2 = p.t[2], t3 = p.t[3], t4 = p.t[4], t5 = p.t[5];
  const float *MOTARFUSE_RESTRICT u = row.u, *MOTARFUSE_RESTRICT v = row.v;
  float *MOTARFUSE_RESTRICT f = row.f, *MOTARFUSE_RESTRICT g = row.g, *MOTARFUSE_RESTRICT h = row.h;
  n = whole(n);
  if (static_cast<int>(p.texture) != kPlain) {
    for (int i = 0; i < n; ++i) {
      f[i] = 0.0f;
      g[i] = 0.0f;
      h[i] = 1.0f;
    }
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

MOTARFUSE_INLINE void composite_row(const Primitive& p, int n, Row& row, float* const* planes,
                                    uint8_t* MOTARFUSE_RESTRICT visible, uint8_t* MOTARFUSE_RESTRICT amodal) {
  const float *MOTARFUSE_RESTRICT f = row.f, *MOTARFUSE_RESTRICT g = row.g, *MOTARFUSE_RESTRICT h = row.h;
  const float *MOTARFUSE_RESTRICT shade = row.shade, *MOTARFUSE_RESTRICT v = row.v;
  float *MOTARFUSE_RESTRICT cover = row.cover, *MOTARFUSE_RESTRICT keep = row.outside;
  const bool plain =
      static_cast<int>(p.texture) == kPlain;  // then f = g = 0 and h = 1, and they are not even filled in
  n = whole(n);
  // A limb darkens what it nearly touches, on the same body only.
  for (int i = 0; i < n; ++i) {
    const float near =
        clamp01(1.0f - keep[i] * p.contact_inverse) * (clamp01(v[i] * p.contact_gain + p.contact_bias) * p.contact);
    keep[i] = amodal[i] != 0 ? 1.0f - near : 1.0f;
  }
  if (!plain) {
    for (int i = 0; i < n; ++i) cover[i] = cover[i] * h[i];
  }
  float *MOTARFUSE_RESTRICT red = planes[0], *MOTARFUSE_RESTRICT green = planes[1], *MOTARFUSE_RESTRICT blue = planes[2];
  const float r0 = p.colour[0][0], g0 = p.colour[0][1], b0 = p.colour[0][2];
  if (plain) {
    MOTARFUSE_INDEPENDENT for (int i = 0; i < n; ++i) {
      const float share = cover[i], kept = keep[i], light = shade[i];
      const float r = red[i] * kept, g = green[i] * kept, b = blue[i] * kept;
      red[i] = r + (r0 * light - r) * share;
      green[i] = g + (g0 * light - g) * share;
      blue[i] = b + (b0 * light - b) * share;
    }
  } else {
    const float r1 = p.colour[1][0], g1 = p.colour[1][1], b1 = p.colour[1][2];
    const float r2 = p.colour[2][0], g2 = p.colour[2][1], b2 = p.colour[2][2];
    MOTARFUSE_INDEPENDENT for (int i = 0; i < n; ++i) {
      const float share = cover[i], kept = keep[i], light = shade[i], first = f[i], second = g[i];
      const float below_r = red[i] * kept, below_g = green[i] * kept, below_b = blue[i] * kept;
      const float ra = r0 + (r1 - r0) * first, ga = g0 + (g1 - g0) * first, ba = b0 + (b1 - b0) * first;
      red[i] = below_r + ((ra + (r2 - ra) * second) * light - below_r) * share;
      green[i] = below_g + ((ga + (g2 - ga) * second) * light - below_g) * share;
      blue[i] = below_b + ((ba + (b2 - ba) * second) * light - below_b) * share;
    }
  }
  const int label = static_cast<int>(p.label);
  if (label == kNoLabel) return;
  const uint8_t first = static_cast<uint8_t>(label);
  const bool subject = static_cast<int>(p.layer) == kLayerSubject;
  if (static_cast<int>(p.texture) != kFace) {
    for (int i = 0; i < n; ++i) visible[i] = cover[i] >= 0.5f ? first : visible[i];
    if (!subject) return;
    for (int i = 0; i < n; ++i) amodal[i] = cover[i] >= 0.5f ? first : amodal[i];
    return;
  }
  // A head is two parts: where its texture shows colour 1 it is hair.
  const uint8_t second = static_cast<uint8_t>(p.t[5]);
  for (int i = 0; i < n; ++i) {
    const uint8_t value = f[i] >= 0.5f ? second : first;
    visible[i] = cover[i] >= 0.5f ? value : visible[i];
    if (subject) amodal[i] = cover[i] >= 0.5f ? value : amodal[i];
  }
}

// The columns that a sweep can reach in a row, conservatively: a slanting limb fills little of its box.
struct Span {
  explicit Span(const Primitive& p) : everywhere(std::fabs(p.axis_y) < 0.2f) {
    if (everywhere) return;
    float half = 0.0f, shift = 0.0f;
    for (int k = 0; k < kStations; ++k) {
      half = most(half, p.width[k]);
      shift = most(shift, std::fabs(p.centre[k]));
    }
    const float edge = 1.0f / p.soft_inverse, shade = p.contact > 0.0f ? 1.0f / p.contact_inverse : 0.0f;
    reach = least((half + shift + most(edge, shade) + 1.0f) / std::fabs(p.axis_y), 1.0e4f);
    slope = p.axis_x / p.axis_y;
  }
  void narrow(const Primitive& p, int y, int& x0, int& x1) const {
    if (everywhere) return;
    const float middle = p.start_x + (static_cast<float>(y) + 0.5f - p.start_y) * slope;
    x0 = std::max(x0, static_cast<int>(std::floor(middle - reach)));
    x1 = std::min(x1, static_cast<int>(std::ceil(middle + reach)) + 1);
  }
  bool everywhere;
  float reach = 0.0f, slope = 0.0f;
};

MOTARFUSE_CLONES void paint(const Primitive& primitive, const int32_t* box, const Canvas& canvas, Row& row) {
  const Primitive p = primitive;  // a copy: no store into a row can change it
  const bool sweep = static_cast<int>(p.shape) == kShapeSweep;
  const Span span(p);
  const int left = std::max(box[0], 0), right = std::min(box[2], canvas.width);
  const int top = std::max(box[1], 0), bottom = std::min(box[3], canvas.height);
  for (int y = top; y < bottom; ++y) {
    int x0 = left, x1 = right;
    if (sweep) span.narrow(p, y, x0, x1);
    if (x0 >= x1) continue;
    const int n = x1 - x0;
    if (sweep) {
      sweep_row(p, x0, n, y, row);
    } else {
      plane_row(p, x0, n, y, row);
    }
    texture_row(p, canvas.tile(0), canvas.tile(1), canvas.tile(2), n, row);
    const size_t at = static_cast<size_t>(y) * canvas.stride + x0;
    float* out[3] = {canvas.plane[0] + at, canvas.plane[1] + at, canvas.plane[2] + at};
    composite_row(p, n, row, out, canvas.visible + at, canvas.amodal + at);
  }
}

}  // namespace

void draw(const Primitive* primitives, const int32_t* boxes, int count, const Canvas& canvas, Row& row) {
  for (int k = 0; k < count; ++k) {
    if (static_cast<int>(primitives[k].shape) != kShapeNone) paint(primitives[k], boxes + 4 * k, canvas, row);
  }
}

}  // namespace motarfuse::synthped
