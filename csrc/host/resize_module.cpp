// Resizing as Python sees it: a decoded picture -> three planes of a batch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "resize.h"

namespace py = pybind11;

namespace motarfuse::resize {
namespace {

using Array = py::array_t<uint8_t, py::array::c_style>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("resize: ") + what);
}

// The memory layouts of the Arrow C data interface (a published ABI; arrow.apache.org/docs/format/CDataInterface.html),
// through which Pillow lends an image's own memory.
struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, n_children;
  ArrowSchema **children, *dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray **children, *dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

template <class T>
T* inside(const py::handle& capsule, const char* name) {
  void* pointer = PyCapsule_GetPointer(capsule.ptr(), name);
  if (pointer == nullptr) throw py::error_already_set();
  return static_cast<T*>(pointer);
}

// Four bytes a pixel, as Pillow keeps RGB.
const uint8_t* arrow_pixels(const py::tuple& capsules, int64_t pixels) {
  require(capsules.size() == 2, "an Arrow picture is a schema and an array");
  const auto* schema = inside<ArrowSchema>(capsules[0], "arrow_schema");
  const auto* array = inside<ArrowArray>(capsules[1], "arrow_array");
  require(schema->release != nullptr && array->release != nullptr, "the Arrow picture was released");
  require(std::strcmp(schema->format, "+w:4") == 0 && schema->n_children == 1 && array->n_children == 1 &&
              std::strcmp(schema->children[0]->format, "C") == 0,
          "an Arrow picture must have four bytes a pixel");
  const ArrowArray& bytes = *array->children[0];
  require(array->length == pixels && array->offset == 0 && bytes.offset == 0 && bytes.length == 4 * pixels &&
              bytes.n_buffers == 2,
          "the Arrow picture has another size");
  return static_cast<const uint8_t*>(bytes.buffers[1]);
}

void into(const py::object& picture, int64_t height, int64_t width, Array& images, int64_t index) {
  require(height >= 1 && width >= 1 && height <= (1 << 27) && width <= (1 << 27), "a picture has at least one pixel");
  require(images.ndim() == 4 && images.shape(1) == 3 && images.shape(2) > 0 && images.shape(3) > 0,
          "images must be (n, 3, height, width) uint8");
  require(index >= 0 && index < images.shape(0), "there are fewer images");
  Source source{nullptr, height, width, 4};
  if (py::isinstance<py::tuple>(picture)) {
    source.pixels = arrow_pixels(picture, height * width);
  } else {
    require(py::isinstance<py::bytes>(picture), "a picture is bytes or an Arrow array");
    require(PyBytes_GET_SIZE(picture.ptr()) == 3 * height * width, "the picture's bytes have another size");
    source.pixels = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(picture.ptr()));
    source.channels = 3;
  }
  const int64_t rows = images.shape(2), columns = images.shape(3);
  uint8_t* out = images.mutable_data() + index * 3 * rows * columns;
  py::gil_scoped_release release;
  thread_local Scratch scratch;
  fit(source, rows, columns, scratch, out);
}

}  // namespace
}  // namespace motarfuse::resize

void bind_resize(py::module_& m) {
  using namespace motarfuse::resize;
  m.attr("resize_revision") = kRevision;
  m.def("resize_into", &into, py::arg("picture"), py::arg("height"), py::arg("width"), py::arg("images").noconvert(),
        py::arg("index"), "Resizes an RGB picture into images[index], three planes of uint8.");
}
