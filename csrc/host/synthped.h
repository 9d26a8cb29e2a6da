// The memory layout that motarfuse/data/synthped/layout.py and the rasteriser share.
#pragma once

#include <cstdint>

namespace motarfuse::synthped {

// Raised whenever a field, a texture or the arithmetic changes: Python refuses a library of another revision.
constexpr int kRevision = 1;

constexpr int kStations = 5;

enum Shape : int { kShapeNone = 0, kShapeSweep = 1, kShapePlane = 2 };

enum Layer : int { kLayerScene = 0, kLayerSubject = 1, kLayerOccluder = 2 };

enum Texture : int {
  kPlain,
  kStripeV,
  kStripeU,
  kCheck,
  kPrint,
  kTwoTone,
  kMottle,
  kOpen,
  kFace,
  kSide,
  kGround,
  kTiles,
  kBrick,
  kLeaves,
  kFoliage,
};

// One primitive, exactly the FIELDS of layout.py. For a plane: (start, axis) are a border point and the inward
// normal, width[0] the horizon, width[1] the perspective (0 = flat), width[2] the least distance to the horizon,
// centre[0] the vanishing column, centre[1] the scale of u.
struct Primitive {
  float shape, label, layer;
  float start_x, start_y, axis_x, axis_y, length, station_scale;
  float width[kStations], centre[kStations];
  float cap_inverse, soft_inverse, opacity;
  float colour[3][3];
  float texture, t[6];
  float u0, u_angle, u_flat, v0, v_scale;
  float light_lateral, light_depth, ambient;
  float wrinkle, noise_x, noise_y, noise_u, noise_v;
  float contact, contact_inverse, contact_gain, contact_bias;
};

// The camera's response, exactly the RESPONSE of layout.py.
struct Response {
  float kernel_x[4], kernel_y[4], sharpen;
  float matrix[3][3], offset[3];
  float noise_luma, noise_chroma, noise_x, noise_y;
  float light_base, light_x, light_y;
  float dapple, dapple_gain, dapple_bias, dapple_scale, dapple_x, dapple_y;
};

constexpr int kNumFields = sizeof(Primitive) / sizeof(float);
constexpr int kNumResponse = sizeof(Response) / sizeof(float);
constexpr int kCurveSize = 1024;
constexpr int kTile = 256;
constexpr int kNumTiles = 3;
constexpr int kNoLabel = 255;

}  // namespace motarfuse::synthped
