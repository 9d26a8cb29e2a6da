// The host side of part_pool that both devices share: checks, allocation, and a call as plain pointers and strides.
#pragma once

#include "part_pool.h"
#include "views.h"

namespace motarfuse {

// (B, K, C) and (B, K), contiguous: results of the forward or their gradients in the backward. No data: not given.
struct PooledView {
  void* pooled = nullptr;
  ScalarType pooled_type = ScalarType::Float;
  void* mass = nullptr;
  ScalarType mass_type = ScalarType::Float;
};

struct PoolCall {
  TokensView tokens;
  LogitsView logits;  // channel 0 the background
  PooledView rows;
  void* total = nullptr;  // (B, K) S_k in the type computed in
  void* exact = nullptr;  // (B, K, C) pooled in the type computed in; null where a forward need not keep it
  TokensView grad_tokens;
  LogitsView grad_logits;
  int64_t batch = 0, parts = 0, cells = 0, channels = 0;
  ScalarType compute = ScalarType::Float;
};

// What the forward and the backward are given alike. The public function has checked all of it with better messages;
// this guards direct calls of torch.ops, which would read out of bounds otherwise.
inline PoolCall pool_call(const Tensor& tokens, const Tensor& part_logits) {
  STD_TORCH_CHECK(tokens.dim() == 3 && part_logits.dim() == 3 && part_logits.size(1) > 0,
                  "part_pool: tokens must be (B, N, C) and part_logits (B, K + 1, N)");
  PoolCall call;
  call.batch = tokens.size(0);
  call.cells = tokens.size(1);
  call.channels = tokens.size(2);
  call.parts = part_logits.size(1) - 1;
  STD_TORCH_CHECK(has_shape(part_logits, {call.batch, call.parts + 1, call.cells}),
                  "part_pool: part_logits do not fit the tokens");
  STD_TORCH_CHECK(part_logits.device() == tokens.device(), "part_pool: part_logits are on another device than tokens");
  STD_TORCH_CHECK(computes_alike(tokens.scalar_type(), part_logits.scalar_type()),
                  "part_pool: tokens and part_logits must be of half types and float32, or both of float64");
  call.tokens = tokens_view(tokens);
  call.logits = logits_view(part_logits);
  call.compute = compute_type(call.tokens.type);
  return call;
}

inline PoolResults allocate_pooled(PoolCall& call, const Tensor& tokens, bool save_statistics) {
  const int64_t batch = call.batch, parts = call.parts, channels = call.channels;
  const bool keeps = save_statistics && call.tokens.type != call.compute;
  auto pooled = new_empty(tokens, {batch, parts, channels}, call.tokens.type);
  auto mass = new_empty(tokens, {batch, parts}, call.logits.type);
  auto total = save_statistics ? new_empty(tokens, {batch, parts}, call.compute) : new_empty(tokens, {0}, call.compute);
  auto exact = keeps ? new_empty(tokens, {batch, parts, channels}, call.compute) : new_empty(tokens, {0}, call.compute);
  call.rows = {pooled.data_ptr(), call.tokens.type, mass.data_ptr(), call.logits.type};
  call.total = save_statistics ? total.data_ptr() : nullptr;
  call.exact = keeps ? exact.data_ptr() : nullptr;
  return {pooled, mass, total, exact};
}

// `pooled` is the forward's result in the type computed in.
inline void take_pooled_gradients(PoolCall& call, const Tensor& tokens, const std::optional<Tensor>& grad_pooled,
                                  const std::optional<Tensor>& grad_mass, const Tensor& pooled, const Tensor& total) {
  const auto check = [&](const Tensor& tensor, bool fits, const char* name) {
    STD_TORCH_CHECK(fits && tensor.is_contiguous() && tensor.device() == tokens.device(), "part_pool: ", name,
                    " must be contiguous, on the tokens' device and of the results' shape");
  };
  check(pooled, has_shape(pooled, {call.batch, call.parts, call.channels}), "pooled");
  check(total, has_shape(total, {call.batch, call.parts}), "total");
  STD_TORCH_CHECK(pooled.scalar_type() == call.compute && total.scalar_type() == call.compute,
                  "part_pool: pooled and total must have the dtype computed in");
  call.exact = pooled.data_ptr();
  call.total = total.data_ptr();
  call.rows = {};
  if (grad_pooled.has_value()) {
    check(*grad_pooled, has_shape(*grad_pooled, {call.batch, call.parts, call.channels}), "grad_pooled");
    STD_TORCH_CHECK(computes_alike(grad_pooled->scalar_type(), call.compute), "part_pool: grad_pooled's dtype");
    call.rows.pooled = grad_pooled->data_ptr();
    call.rows.pooled_type = grad_pooled->scalar_type();
  }
  if (grad_mass.has_value()) {
    check(*grad_mass, has_shape(*grad_mass, {call.batch, call.parts}), "grad_mass");
    STD_TORCH_CHECK(computes_alike(grad_mass->scalar_type(), call.compute), "part_pool: grad_mass' dtype");
    call.rows.mass = grad_mass->data_ptr();
    call.rows.mass_type = grad_mass->scalar_type();
  }
}

// Gradients take the strides of what they belong to, so that no transposition follows.
inline PoolGradients allocate_pool_gradients(PoolCall& call, const Tensor& tokens, const Tensor& part_logits,
                                             bool needs_tokens, bool needs_logits) {
  auto grad_tokens = needs_tokens ? torch::stable::empty_like(tokens) : no_gradient(tokens);
  auto grad_logits = needs_logits ? torch::stable::empty_like(part_logits) : no_gradient(part_logits);
  if (needs_tokens) call.grad_tokens = tokens_view(grad_tokens);
  if (needs_logits) call.grad_logits = logits_view(grad_logits);
  return {grad_tokens, grad_logits};
}

}  // namespace motarfuse
