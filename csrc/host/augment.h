// Random changes and normalisation of a batch of images in one pass over each image.
//
// motarfuse/data/transforms.py says what happens, in torch; here it happens in the same order, every product and sum
// rounded on its own (the files are compiled without contraction), so that both give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace motarfuse::augment {

// Raised whenever a field or the arithmetic changes: Python refuses a library of another revision.
constexpr int kRevision = 1;

// The parameters of one image, or of all frames of a clip, exactly the rows that motarfuse/data/augment_host.py packs:
// whole numbers, flags and shares alike are doubles.
struct Parameters {
  double flip, shift_y, shift_x;  // content moves down and right
  double turned;                  // which of `turned` takes the place of the flipped and shifted image; -1: none
  double occluder[4];             // top, left, height, width; height 0: none
  double occluder_from_batch, donor, donor_y, donor_x;
  double texture[9];
  double color, matrix[9], offset;
  double erasing[4];  // as the occluder
  double noise_y, noise_x;
};
constexpr int kNumFields = sizeof(Parameters) / sizeof(double);

struct Batch {
  int64_t images, frames;  // all images, and how many of them in a row share their parameters
  int64_t height, width;
  const uint8_t* pixels;         // (images, 3, height, width)
  const Parameters* parameters;  // (images / frames)
  const uint8_t* turned;         // (turned clips * frames, 3, height, width)
  int64_t turned_clips;
  const float* noise;         // (3, height, width), or null: erased pixels are 0
  float scale[3], shift[3];   // result = value * scale + shift
  float* out;                 // (images, 3, height, width)
};

// Why the parameters cannot be used, or null.
const char* problem(const Batch& batch);

// What a thread works with; one for all images it takes.
struct Scratch {
  explicit Scratch(const Batch& batch) : pixels(static_cast<size_t>(3 * batch.height * batch.width)) {}
  std::vector<uint8_t> pixels;
};

// Everything, for image `index`.
void vary(const Batch& batch, int64_t index, Scratch& scratch);

// result = value * scale + shift, for one image.
void normalize(const uint8_t* pixels, int64_t area, const float* scale, const float* shift, float* out);

}  // namespace motarfuse::augment
