// What the two halves of SynthPed's rasteriser share: the canvas and the arithmetic.
//
// Every value is fp32, every operation is one of + - * / floor min max or an integer operation, in the order in which
// motarfuse/data/synthped/raster_numpy.py writes it, and the files are compiled without contraction: both give the same
// bits.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// Changes no value; lets floor become a vector instruction.
#pragma GCC optimize("no-trapping-math")
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "synthped.h"

// One binary for every x86-64, with the wide loops where the machine has them. FMA is not asked for.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define MOTARFUSE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOTARFUSE_CLONES
#endif
#define MOTARFUSE_RESTRICT __restrict__
// Before a loop whose arrays are not each other's: no comparison of their addresses at every row.
#if defined(__GNUC__) && !defined(__clang__)
#define MOTARFUSE_INDEPENDENT _Pragma("GCC ivdep")
#else
#define MOTARFUSE_INDEPENDENT
#endif
#define MOTARFUSE_INLINE inline __attribute__((always_inline))

namespace motarfuse::synthped {

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

// Paints the primitives in their order; all planes and labels of the canvas must be 0 at first.
void draw(const Primitive* primitives, const int32_t* boxes, int count, const Canvas& canvas, Row& row);

// Bilinear resampling onto a coarser lattice and back, one axis at a time: first[i], second[i] are the lattice points
// around i, weight[i] the share of the second.
struct Lattice {
  const int32_t *first, *second;
  const float* weight;
};

// What the camera makes of the canvas: light, blur, resolution, sharpening, colour, noise. Image (height, width, 3);
// the canvas is used up; scratch holds 2 * height * width + width + 8 values.
void finish(const Response& response, const uint8_t* curve, const Lattice& across, const Lattice& down,
            const Canvas& canvas, std::vector<float>& scratch, uint8_t* image);

}  // namespace motarfuse::synthped
