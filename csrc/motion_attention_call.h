// The host side of motion_attention's backward: checks, allocation, and a call as plain pointers and strides.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "library.h"
#include "scalar_types.h"

namespace motarfuse {

constexpr int kMaxMotionChannels = 16;

// Which gradients are wanted, as bits of `needs`.
enum AttentionGradient { kQuery, kKey, kValue, kMotionQuery, kMotionKey, kMotionScale, kKeyBias, kAttentionGradients };

// (B, H, tokens, d) in the query's dtype: strides in elements. `words`: every row is whole, aligned words of 16 bytes,
// and those of one (batch, head) lie within 2^31 bytes.
struct TokenView {
  void* data = nullptr;
  int64_t batch = 0, head = 0, token = 0, channel = 1;
  bool words = false;
};

// (B, H, tokens, R), (B, H, M) or (H,) in float or in the query's dtype: strides in elements, 0 where it is shared.
struct FloatView {
  const void* data = nullptr;
  bool single = true;  // float, not the query's dtype
  int64_t batch = 0, head = 0, token = 0, channel = 0;
};

// Where a gradient of the motion, of its scale or of the key bias goes: a block for each (batch, head), one after the
// other, in float where something is summed over them afterwards. No data: not wanted.
struct FloatGradient {
  void* data = nullptr;
  bool single = true;
};

// target[outer, inner] = sum over `count` of partial[outer, count, inner].
struct AttentionSum {
  const float* partial = nullptr;
  void* target = nullptr;
  bool single = true;
  int64_t outer = 0, count = 0, inner = 0;
};

struct AttentionSums {
  AttentionSum jobs[4];
  int count = 0;
};

struct AttentionCall {
  TokenView query, key, value, grad_out, out;
  TokenView grad_query, grad_key, grad_value;
  FloatView motion_query, motion_key, motion_scale, key_bias;
  FloatGradient grad_motion_query, grad_motion_key, grad_motion_scale, grad_key_bias;
  const float* lse = nullptr;
  int64_t batch = 0;
  int heads = 0, queries = 0, keys = 0, width = 0, channels = 0;
  float scale = 1.0F;

  bool empty() const { return batch == 0 || heads == 0 || queries == 0 || keys == 0; }
};

// Everything that a backward returns, and what must be summed after the main kernel.
struct AttentionResults {
  std::array<std::optional<Tensor>, kAttentionGradients> gradients;
  std::array<std::optional<Tensor>, kAttentionGradients> partials;
  AttentionSums sums;
};

inline void check_attention_shape(const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
  bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; equal && d < tensor.dim(); ++d) equal = tensor.size(d) == shape.begin()[d];
  STD_TORCH_CHECK(equal, "motion_attention: ", name, " has a shape that does not fit query and key");
}

inline TokenView token_view(const Tensor& tensor) {
  TokenView view{tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
  view.words = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch % 8 == 0 && view.head % 8 == 0 &&
               view.token % 8 == 0 && view.token >= 0 && view.channel == 1 &&
               view.token * tensor.size(2) < (int64_t{1} << 30);
  return view;
}

inline bool is_single(const Tensor& tensor, const Tensor& query, const char* name) {
  const auto type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == query.scalar_type(), "motion_attention: ", name,
                  " must be float32 or of the query's dtype");
  STD_TORCH_CHECK(tensor.device() == query.device(), "motion_attention: ", name, " is on another device than query");
  return type == ScalarType::Float;
}

inline FloatView motion_view(const Tensor& motion, const Tensor& query, int64_t tokens, const char* name) {
  STD_TORCH_CHECK(motion.dim() == 4, "motion_attention: ", name, " must have 4 dimensions");
  const bool shared = motion.size(1) == 1;
  check_attention_shape(motion, {query.size(0), shared ? 1 : query.size(1), tokens, motion.size(3)}, name);
  return {motion.data_ptr(),  is_single(motion, query, name), motion.stride(0), shared ? 0 : motion.stride(1),
          motion.stride(2), motion.stride(3)};
}

// What the public function has checked with better messages; this guards direct calls of torch.ops, which would read
// out of bounds otherwise.
inline AttentionCall attention_call(const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
                                    const std::optional<Tensor>& motion_query, const std::optional<Tensor>& motion_key,
                                    const std::optional<Tensor>& motion_scale, const std::optional<Tensor>& key_bias,
                                    const Tensor& out, const Tensor& lse, double scale) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "motion_attention: query and key must have 4 dimensions");
  STD_TORCH_CHECK(is_half(query.scalar_type()), "motion_attention: this backward takes float16 and bfloat16");
  STD_TORCH_CHECK(scale != 0.0, "motion_attention: this backward needs a scale other than 0");
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  const int64_t keys = key.size(2), limit = int64_t{1} << 30;
  STD_TORCH_CHECK(queries < limit && keys < limit && batch * heads < 2 * limit, "motion_attention: too many tokens");
  AttentionCall call;
  call.batch = batch;
  call.heads = static_cast<int>(heads);
  call.queries = static_cast<int>(queries);
  call.keys = static_cast<int>(keys);
  call.width = static_cast<int>(width);
  call.scale = static_cast<float>(scale);
  for (const Tensor* tensor : {&grad_out, &out, &key, &value}) {
    check_attention_shape(*tensor, {batch, heads, tensor == &key || tensor == &value ? keys : queries, width},
                          "key, value, out or grad_out");
    STD_TORCH_CHECK(tensor->scalar_type() == query.scalar_type() && tensor->device() == query.device(),
                    "motion_attention: key, value, out and grad_out must have the query's dtype and device");
  }
  check_attention_shape(lse, {batch, heads, queries}, "lse");
  STD_TORCH_CHECK(lse.is_contiguous() && lse.scalar_type() == ScalarType::Float && lse.device() == query.device(),
                  "motion_attention: lse must be contiguous float32 on the query's device");
  call.query = token_view(query);
  call.key = token_view(key);
  call.value = token_view(value);
  call.grad_out = token_view(grad_out);
  call.out = token_view(out);
  call.lse = static_cast<const float*>(lse.data_ptr());
  STD_TORCH_CHECK(motion_query.has_value() == motion_key.has_value(),
                  "motion_attention: motion_query and motion_key belong together");
  if (motion_query.has_value()) {
    call.motion_query = motion_view(*motion_query, query, queries, "motion_query");
    call.motion_key = motion_view(*motion_key, query, keys, "motion_key");
    STD_TORCH_CHECK(motion_query->size(3) == motion_key->size(3) && motion_key->size(3) <= kMaxMotionChannels,
                    "motion_attention: motions must have one number of channels, at most 16");
    call.channels = static_cast<int>(motion_query->size(3));
    if (motion_scale.has_value()) {
      check_attention_shape(*motion_scale, {heads}, "motion_scale");
      call.motion_scale = {motion_scale->data_ptr(), is_single(*motion_scale, query, "motion_scale"), 0,
                           motion_scale->stride(0)};
    }
  }
  STD_TORCH_CHECK(motion_query.has_value() || !motion_scale.has_value(),
                  "motion_attention: motion_scale is given without motion_query and motion_key");
  if (key_bias.has_value()) {
    const bool shared = key_bias->dim() == 2;
    if (shared) {
      check_attention_shape(*key_bias, {batch, keys}, "key_bias");
    } else {
      check_attention_shape(*key_bias, {batch, heads, keys}, "key_bias");
    }
    call.key_bias = {key_bias->data_ptr(), is_single(*key_bias, query, "key_bias"), key_bias->stride(0),
                     shared ? 0 : key_bias->stride(1), key_bias->stride(shared ? 1 : 2)};
  }
  return call;
}

inline Tensor empty_of(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

// A gradient (B, H, tokens, d) in memory as (B, tokens, H, d), which a projection's backward takes without a copy.
inline Tensor token_gradient(const Tensor& like, int64_t tokens, TokenView& view) {
  const auto memory = empty_of(like, {like.size(0), tokens, like.size(1), like.size(3)}, like.scalar_type());
  const auto gradient = torch::stable::transpose(memory, 1, 2);
  view = token_view(gradient);
  return gradient;
}

// The gradient of a motion or of a key bias with `count` numbers for each (batch, head).
inline void float_gradient(AttentionResults& results, AttentionGradient which, const AttentionCall& call,
                           const Tensor& like, bool shared, int64_t count, FloatGradient& gradient) {
  auto& result = results.gradients[which];
  result = torch::stable::new_empty(like, like.sizes());
  const bool single = like.scalar_type() == ScalarType::Float;
  gradient = {result->data_ptr(), single};
  if (!shared || call.heads == 1) return;
  auto& partial = results.partials[which];
  partial = empty_of(like, {call.batch, call.heads, count}, ScalarType::Float);
  gradient = {partial->data_ptr(), true};
  results.sums.jobs[results.sums.count++] = {static_cast<const float*>(partial->data_ptr()), result->data_ptr(), single,
                                      call.batch, call.heads, count};
}

inline AttentionResults allocate_attention_gradients(AttentionCall& call, const Tensor& query, const Tensor& key,
                                                     const std::optional<Tensor>& motion_query,
                                                     const std::optional<Tensor>& motion_key,
                                                     const std::optional<Tensor>& motion_scale,
                                                     const std::optional<Tensor>& key_bias, bool packed,
                                                     int64_t needs) {
  AttentionResults results;
  const auto wants = [&](AttentionGradient which) { return (needs >> which & 1) != 0; };
  if (packed) {
    STD_TORCH_CHECK(wants(kQuery) && wants(kKey) && wants(kValue) && call.queries == call.keys,
                    "motion_attention: a packed gradient is one of query, key and value of one length");
    const int64_t row = int64_t{call.heads} * call.width;
    auto& gradient = results.gradients[kQuery];
    gradient = empty_of(query, {call.batch, call.queries, 3, call.heads, call.width}, query.scalar_type());
    TokenView* const views[] = {&call.grad_query, &call.grad_key, &call.grad_value};
    for (int i = 0; i < 3; ++i) {
      void* const data = static_cast<char*>(gradient->data_ptr()) + 2 * i * row;  // 2 bytes a number
      *views[i] = {data, 3 * row * call.queries, call.width, 3 * row, 1, true};
    }
  } else {
    if (wants(kQuery)) results.gradients[kQuery] = token_gradient(query, call.queries, call.grad_query);
    if (wants(kKey)) results.gradients[kKey] = token_gradient(query, call.keys, call.grad_key);
    if (wants(kValue)) results.gradients[kValue] = token_gradient(query, call.keys, call.grad_value);
  }
  if (wants(kMotionQuery) && motion_query.has_value()) {
    float_gradient(results, kMotionQuery, call, *motion_query, motion_query->size(1) == 1,
                   int64_t{call.queries} * call.channels, call.grad_motion_query);
  }
  if (wants(kMotionKey) && motion_key.has_value()) {
    float_gradient(results, kMotionKey, call, *motion_key, motion_key->size(1) == 1,
                   int64_t{call.keys} * call.channels, call.grad_motion_key);
  }
  if (wants(kKeyBias) && key_bias.has_value()) {
    float_gradient(results, kKeyBias, call, *key_bias, key_bias->dim() == 2, call.keys, call.grad_key_bias);
  }
  if (wants(kMotionScale) && motion_scale.has_value()) {
    auto& result = results.gradients[kMotionScale];
    result = torch::stable::new_empty(*motion_scale, motion_scale->sizes());
    auto& partial = results.partials[kMotionScale];
    partial = empty_of(query, {call.batch, call.heads}, ScalarType::Float);
    call.grad_motion_scale = {partial->data_ptr(), true};
    results.sums.jobs[results.sums.count++] = {static_cast<const float*>(partial->data_ptr()), result->data_ptr(),
                                        motion_scale->scalar_type() == ScalarType::Float, 1, call.batch, call.heads};
  }
  return results;
}

// In the order of the schema; what is not wanted is an empty tensor.
inline AttentionGradients as_tuple(AttentionResults& results, const Tensor& like) {
  const auto take = [&](AttentionGradient which) {
    auto& gradient = results.gradients[which];
    return gradient.has_value() ? *gradient : empty_of(like, {0}, like.scalar_type());
  };
  return {take(kQuery),     take(kKey),         take(kValue),  take(kMotionQuery),
          take(kMotionKey), take(kMotionScale), take(kKeyBias)};
}

}  // namespace motarfuse
