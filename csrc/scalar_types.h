// Floating-point types of tensors: the type computed in, reading and writing single numbers of a type known at run
// time.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace motarfuse {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;
using torch::headeronly::ScalarType;

// Half types compute in float.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

inline ScalarType compute_type(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

// For the few numbers a row has; cells are read with types known at compile time.
template <class C>
MOTARFUSE_HOST_DEVICE C read_as(const void* data, ScalarType type, int64_t index) {
  switch (type) {
    case ScalarType::Double: return static_cast<C>(static_cast<const double*>(data)[index]);
    case ScalarType::Half: return static_cast<C>(static_cast<float>(static_cast<const Half*>(data)[index]));
    case ScalarType::BFloat16: return static_cast<C>(static_cast<float>(static_cast<const BFloat16*>(data)[index]));
    default: return static_cast<C>(static_cast<const float*>(data)[index]);
  }
}

template <class C>
MOTARFUSE_HOST_DEVICE void write_as(void* data, ScalarType type, int64_t index, C value) {
  switch (type) {
    case ScalarType::Double: static_cast<double*>(data)[index] = static_cast<double>(value); break;
    case ScalarType::Half: static_cast<Half*>(data)[index] = Half(static_cast<float>(value)); break;
    case ScalarType::BFloat16: static_cast<BFloat16*>(data)[index] = BFloat16(static_cast<float>(value)); break;
    default: static_cast<float*>(data)[index] = static_cast<float>(value);
  }
}

// Calls function(T{}) with the C++ type of a floating-point dtype.
template <class F>
void dispatch_float(ScalarType type, const F& function) {
  switch (type) {
    case ScalarType::Double: function(double{}); break;
    case ScalarType::Float: function(float{}); break;
    case ScalarType::Half: function(Half{}); break;
    case ScalarType::BFloat16: function(BFloat16{}); break;
    default: STD_TORCH_CHECK(false, "motarfuse: expected a floating-point tensor of 2, 4 or 8 bytes");
  }
}

}  // namespace motarfuse
