// bias_gelu on the CPU: tiles of rows over threads, each read once and written once. The backward computes the sums x +
// bias again; sums over rows do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../views.h"
#include "gelu.h"
#include "gelu_rows.h"
#include "simd.h"

namespace motarfuse {
namespace {

// Numbers of a tile: its bias stays in the first-level cache, beside it a backward's sums, and loops are long.
constexpr int64_t kForwardTile = 2048, kBackwardTile = 1024;

// Loops --------------------------------------------------------------------------------------------------------------

template <Activation kActivation, class C>
MOTARFUSE_INLINE void activate(const C* x, const C* bias, int64_t count, C* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = gelu<kActivation>(x[i] + bias[i]);
}

template <class C>
MOTARFUSE_INLINE void activate_as(Activation activation, const C* x, const C* bias, int64_t count, C* out) {
  switch (activation) {
    case Activation::kGelu: return activate<Activation::kGelu>(x, bias, count, out);
    case Activation::kGeluTanh: return activate<Activation::kGeluTanh>(x, bias, count, out);
    default: return activate<Activation::kQuickGelu>(x, bias, count, out);
  }
}

template <Activation kActivation, class C>
MOTARFUSE_INLINE void differentiate(const C* x, const C* bias, const C* grad_out, int64_t count, C* grad, C* sums) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const C g = gelu_derivative<kActivation>(x[i] + bias[i]) * grad_out[i];
    grad[i] = g;
    sums[i] += g;
  }
}

template <class C>
MOTARFUSE_INLINE void differentiate_as(Activation activation, const C* x, const C* bias, const C* grad_out,
                                       int64_t count, C* grad, C* sums) {
  switch (activation) {
    case Activation::kGelu: return differentiate<Activation::kGelu>(x, bias, grad_out, count, grad, sums);
    case Activation::kGeluTanh: return differentiate<Activation::kGeluTanh>(x, bias, grad_out, count, grad, sums);
    default: return differentiate<Activation::kQuickGelu>(x, bias, grad_out, count, grad, sums);
  }
}

MOTARFUSE_VARIANTS(activate_float,
                   (Activation activation, const float* x, const float* bias, int64_t count, float* out),
                   (activation, x, bias, count, out), activate_as<float>(activation, x, bias, count, out))

MOTARFUSE_VARIANTS(differentiate_float,
                   (Activation activation, const float* x, const float* bias, const float* grad_out, int64_t count,
                    float* grad, float* sums),
                   (activation, x, bias, grad_out, count, grad, sums),
                   differentiate_as<float>(activation, x, bias, grad_out, count, grad, sums))

void run(Activation activation, const float* x, const float* bias, int64_t count, float* out) {
  activate_float(activation, x, bias, count, out);
}
void run(Activation activation, const double* x, const double* bias, int64_t count, double* out) {
  activate_as<double>(activation, x, bias, count, out);
}
void run(Activation activation, const float* x, const float* bias, const float* grad_out, int64_t count, float* grad,
         float* sums) {
  differentiate_float(activation, x, bias, grad_out, count, grad, sums);
}
void run(Activation activation, const double* x, const double* bias, const double* grad_out, int64_t count,
         double* grad, double* sums) {
  differentiate_as<double>(activation, x, bias, grad_out, count, grad, sums);
}

// Rows ---------------------------------------------------------------------------------------------------------------

// (..., C) as rows, whatever the strides of the leading dimensions.
class Rows {
 public:
  explicit Rows(const Tensor& tensor) : data_(tensor.data_ptr()), type_(tensor.scalar_type()) {
    const int64_t last = tensor.dim() - 1;
    channels_ = tensor.size(last);
    channel_ = channels_ == 1 ? 1 : tensor.stride(last);
    for (int64_t d = last - 1; d >= 0; --d) {
      const int64_t size = tensor.size(d), stride = tensor.stride(d);
      count_ *= size;
      if (size == 1) continue;
      if (!dimensions_.empty() && stride == dimensions_.back().size * dimensions_.back().stride) {
        dimensions_.back().size *= size;
      } else {
        dimensions_.push_back({size, stride});
      }
    }
  }

  int64_t count() const { return count_; }
  int64_t channels() const { return channels_; }

  // Where rows from `first` on lie one behind the other in the type computed in; null where they do not.
  template <class C>
  C* in_place(int64_t first, int64_t rows) const {
    const bool follow = dimensions_.empty() || (dimensions_.size() == 1 && dimensions_[0].stride == channels_);
    if (channel_ != 1 || !is_of<C>(type_) || !(rows == 1 || follow)) return nullptr;
    return static_cast<C*>(data_) + offset_of(first);
  }

  // The same numbers, converted into `scratch` where they are elsewhere.
  template <class C>
  const C* read(int64_t first, int64_t rows, C* scratch) const {
    if (const C* found = in_place<C>(first, rows)) return found;
    for (int64_t r = 0; r < rows; ++r) {
      load_line(data_, type_, offset_of(first + r), channel_, channels_, scratch + r * channels_);
    }
    return scratch;
  }

  template <class C>
  void write(int64_t first, int64_t rows, const C* values) const {
    for (int64_t r = 0; r < rows; ++r) {
      store_line(data_, type_, offset_of(first + r), channel_, channels_, values + r * channels_);
    }
  }

 private:
  struct Dimension {
    int64_t size, stride;
  };

  int64_t offset_of(int64_t row) const {
    int64_t offset = 0;
    for (const Dimension& one : dimensions_) {
      offset += row % one.size * one.stride;
      row /= one.size;
    }
    return offset;
  }

  void* data_;
  ScalarType type_;
  int64_t count_ = 1, channels_ = 0, channel_ = 1;
  std::vector<Dimension> dimensions_;  // the last one first
};

// Calls --------------------------------------------------------------------------------------------------------------

Activation activation_named(const std::string& name) {
  STD_TORCH_CHECK(name == "gelu" || name == "gelu_tanh" || name == "quick_gelu",
                  "bias_gelu: activation is gelu, gelu_tanh or quick_gelu");
  return name == "gelu" ? Activation::kGelu : name == "gelu_tanh" ? Activation::kGeluTanh : Activation::kQuickGelu;
}

void check_inputs(const Tensor& x, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1 && is_floating(x.scalar_type()),
                  "bias_gelu: x must have a dimension and a floating-point dtype");
  STD_TORCH_CHECK(!bias.has_value() || has_shape(*bias, {x.size(x.dim() - 1)}),
                  "bias_gelu: bias must have one number for each channel");
  STD_TORCH_CHECK(!bias.has_value() || computes_alike(x.scalar_type(), bias->scalar_type()),
                  "bias_gelu: x and bias must be of half types and float32, or both of float64");
}

// Of one direction: rows in tiles, and the bias beside each of them.
template <class C>
struct Tiles {
  Tiles(const Rows& rows, int64_t size, const std::optional<Tensor>& bias)
      : rows(rows.count()),
        channels(rows.channels()),
        each(std::min(this->rows, std::max<int64_t>(1, size / channels))),
        count((this->rows + each - 1) / each),
        offsets(columns()) {
    if (bias.has_value()) {
      repeat_line(bias->data_ptr(), bias->scalar_type(), 0, bias->stride(0), channels, each, offsets.data());
    } else {
      std::fill(offsets.data(), offsets.data() + columns(), C(0));
    }
  }

  int64_t columns() const { return each * channels; }
  int64_t first(int64_t tile) const { return tile * each; }
  int64_t size(int64_t tile) const { return std::min(each, rows - first(tile)); }
  int64_t numbers() const { return rows * channels; }

  const int64_t rows, channels, each, count;
  Scratch<C> offsets;  // (each, channels)
};

template <class C>
void forward(Activation activation, const Tensor& x, const std::optional<Tensor>& bias, const Tensor& out) {
  const Rows in(x), results(out);
  const Tiles<C> tiles(in, kForwardTile, bias);
  parallel_rows(tiles.count, tiles.columns(), [&](int64_t begin, int64_t end) {
    const bool converts = !is_of<C>(x.scalar_type());
    const Scratch<C> copied(tiles.columns()), computed(converts ? tiles.columns() : 0);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tiles.first(tile), size = tiles.size(tile);
      const C* const source = in.read(first, size, copied.data());
      C* const target = converts ? computed.data() : results.in_place<C>(first, size);
      run(activation, source, tiles.offsets.data(), size * tiles.channels, target);
      if (converts) results.write(first, size, target);
    }
  });
}

template <class C>
void backward(Activation activation, const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& bias,
              const Tensor* grad_x, const Tensor* grad_bias) {
  const Rows in(x), incoming(grad_out), results(grad_x == nullptr ? x : *grad_x);
  const Tiles<C> tiles(in, kBackwardTile, bias);
  const int64_t columns = tiles.columns(), blocks = ColumnSums<C>::blocks_of(tiles.count, tiles.numbers());
  const Scratch<double> totals(blocks * columns);
  parallel_rows(blocks, kCellsPerTask, [&](int64_t begin, int64_t end) {
    const Scratch<C> copied(columns), copied_grad(columns), computed(columns);
    const bool writes = grad_x != nullptr, in_place = writes && is_of<C>(x.scalar_type());
    for (int64_t block = begin; block < end; ++block) {
      ColumnSums<C> sums(columns, totals.data() + block * columns);
      const int64_t last = (block + 1) * tiles.count / blocks;
      for (int64_t tile = block * tiles.count / blocks; tile < last; ++tile) {
        const int64_t first = tiles.first(tile), size = tiles.size(tile);
        const C* const source = in.read(first, size, copied.data());
        const C* const gradients = incoming.read(first, size, copied_grad.data());
        C* const target = in_place ? results.in_place<C>(first, size) : computed.data();
        run(activation, source, tiles.offsets.data(), gradients, size * tiles.channels, target, sums.data());
        if (writes && !in_place) results.write(first, size, target);
        sums.end_tile();
      }
      sums.flush();
    }
  });
  if (grad_bias == nullptr) return;
  store_sums(add_blocks(totals.data(), blocks, 1, tiles.each, tiles.channels), tiles.channels, *grad_bias, 0, 1);
}

}  // namespace

Tensor bias_gelu_forward_cpu(const Tensor& x, const std::optional<Tensor>& bias, std::string activation) {
  check_inputs(x, bias);
  const Activation chosen = activation_named(activation);
  Tensor out = torch::stable::new_empty(x, x.sizes(), x.scalar_type());
  if (out.numel() == 0) return out;
  x.scalar_type() == ScalarType::Double ? forward<double>(chosen, x, bias, out) : forward<float>(chosen, x, bias, out);
  return out;
}

BiasGeluGradients bias_gelu_backward_cpu(const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& bias,
                                         std::string activation, bool needs_x, bool needs_bias) {
  check_inputs(x, bias);
  const Activation chosen = activation_named(activation);
  bool fits = grad_out.dim() == x.dim() && grad_out.scalar_type() == x.scalar_type();
  for (int64_t d = 0; fits && d < x.dim(); ++d) fits = grad_out.size(d) == x.size(d);
  STD_TORCH_CHECK(fits, "bias_gelu: grad_out must have the shape and dtype of x");
  const Tensor& like = bias.has_value() ? *bias : x;
  BiasGeluGradients gradients{
      needs_x ? torch::stable::new_empty(x, x.sizes(), x.scalar_type()) : no_gradient(x),
      needs_bias ? new_empty(like, {x.size(x.dim() - 1)}, like.scalar_type()) : no_gradient(like)};
  auto& [grad_x, grad_bias] = gradients;
  if (x.numel() == 0) {
    if (needs_bias) torch::stable::zero_(grad_bias);
    return gradients;
  }
  if (!needs_x && !needs_bias) return gradients;
  const auto run = [&](auto zero) {
    backward<decltype(zero)>(chosen, grad_out, x, bias, needs_x ? &grad_x : nullptr,
                             needs_bias ? &grad_bias : nullptr);
  };
  x.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return gradients;
}

}  // namespace motarfuse
