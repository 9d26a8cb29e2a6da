// The random changes as Python sees them: arrays of bytes and parameters -> normalised floats.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "augment.h"
#include "workers.h"

namespace py = pybind11;

namespace motarfuse::augment {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Another thread costs about as much as some images of 256 x 128.
constexpr int64_t kPixelsPerThread = 1 << 18;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("augment: ") + what);
}

int64_t images_per_thread(int64_t area) { return std::max<int64_t>(1, kPixelsPerThread / area); }

void check_images(const Array<uint8_t>& images, const Array<float>& scale, const Array<float>& shift,
                  const Array<float>& out) {
  require(images.ndim() == 4 && images.shape(1) == 3 && images.shape(2) > 0 && images.shape(3) > 0,
          "images must be (n, 3, height, width) uint8");
  require(out.ndim() == 4 && std::equal(images.shape(), images.shape() + 4, out.shape()),
          "out must have the images' shape");
  require(scale.ndim() == 1 && scale.shape(0) == 3 && shift.ndim() == 1 && shift.shape(0) == 3,
          "scale and shift must be three numbers");
}

void vary_batch(const Array<uint8_t>& images, const Array<double>& parameters, const Array<uint8_t>& turned,
                const std::optional<Array<float>>& noise, const Array<float>& scale, const Array<float>& shift,
                Array<float>& out, int threads) {
  check_images(images, scale, shift, out);
  require(threads >= 1, "threads must be positive");
  require(parameters.ndim() == 2 && parameters.shape(1) == kNumFields, "parameters must be (clips, fields) float64");
  const int64_t count = images.shape(0), clips = parameters.shape(0);
  require(clips > 0 && count % clips == 0 && count > 0, "there must be as many frames in every clip");
  const int64_t frames = count / clips, height = images.shape(2), width = images.shape(3);
  require(turned.ndim() == 4 && turned.shape(0) % frames == 0 &&
              std::equal(images.shape() + 1, images.shape() + 4, turned.shape() + 1),
          "turned must be (clips times frames, 3, height, width) uint8");
  require(!noise || (noise->ndim() == 3 && std::equal(images.shape() + 1, images.shape() + 4, noise->shape())),
          "noise must be (3, height, width) float32");
  Batch batch{count,
              frames,
              height,
              width,
              images.data(),
              reinterpret_cast<const Parameters*>(parameters.data()),
              turned.data(),
              turned.shape(0) / frames,
              noise ? noise->data() : nullptr,
              {},
              {},
              out.mutable_data()};
  std::copy(scale.data(), scale.data() + 3, batch.scale);
  std::copy(shift.data(), shift.data() + 3, batch.shift);
  const char* wrong = problem(batch);
  require(wrong == nullptr, wrong);
  py::gil_scoped_release release;
  share_out(count, images_per_thread(height * width), threads, [&] {
    return [&batch, scratch = Scratch(batch)](int64_t index) mutable { vary(batch, index, scratch); };
  });
}

void normalize_batch(const Array<uint8_t>& images, const Array<float>& scale, const Array<float>& shift,
                     Array<float>& out, int threads) {
  check_images(images, scale, shift, out);
  require(threads >= 1, "threads must be positive");
  const int64_t count = images.shape(0), area = images.shape(2) * images.shape(3);
  const uint8_t* pixels = images.data();
  const float *scales = scale.data(), *shifts = shift.data();
  float* result = out.mutable_data();
  py::gil_scoped_release release;
  share_out(count, images_per_thread(area), threads, [&] {
    return [=](int64_t index) { normalize(pixels + index * 3 * area, area, scales, shifts, result + index * 3 * area); };
  });
}

}  // namespace
}  // namespace motarfuse::augment

void bind_augment(py::module_& m) {
  using namespace motarfuse::augment;
  m.attr("augment_revision") = kRevision;
  m.attr("augment_fields") = kNumFields;
  m.def("augment_vary", &vary_batch, py::arg("images").noconvert(), py::arg("parameters").noconvert(),
        py::arg("turned").noconvert(), py::arg("noise").noconvert(), py::arg("scale").noconvert(),
        py::arg("shift").noconvert(), py::arg("out").noconvert(), py::arg("threads") = 1,
        "Varies and normalises images (n, 3, h, w) uint8 into out, float32.");
  m.def("augment_normalize", &normalize_batch, py::arg("images").noconvert(), py::arg("scale").noconvert(),
        py::arg("shift").noconvert(), py::arg("out").noconvert(), py::arg("threads") = 1,
        "Writes images (n, 3, h, w) uint8 times scale plus shift into out, float32.");
}
