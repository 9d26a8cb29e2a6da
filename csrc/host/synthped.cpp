// SynthPed's rasteriser as Python sees it: arrays of scenes -> images and part labels, several images at once.

#include "synthped.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "synthped_raster.h"

namespace py = pybind11;

namespace motarfuse::synthped {
namespace {

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
