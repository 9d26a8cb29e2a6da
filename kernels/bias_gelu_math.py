"""GELUs and their derivatives, in few instructions and with small numbers' own precision.

They are computed from what is left on the negative side, so that nothing cancels there and nothing overflows:

- u Phi(u) = max(u, 0) - |u| q, q = Phi(-|u|); its derivative is d for u < 0 and 1 - d else, d = q - |u| phi(u).
- u sigmoid(s) with a = exp(-|s|): sigmoid(s) is 1 / (1 + a), times a for s < 0, and its derivative by s a / (1 + a)^2.
  The approximation by tanh is of this kind, because (1 + tanh(s / 2)) / 2 = sigmoid(s).

log2 q is a polynomial of |u| in float32. It is fitted where q is above 1e-9, with a relative error of 2e-7 near 0 and
3e-6 at 5, and falls faster than log2 Phi beyond: q is 0 from 13 on. docs/kernels/bias_gelu.md has the errors.
"""

from __future__ import annotations

import triton
import triton.language as tl

# From here on q and phi are 0 in float32; infinity must not meet that 0.
BOUND = tl.constexpr(20.0)


@triton.jit
def negative_side(u):
    """min(|u|, BOUND), and q = Phi of its negative; both NaN where u is."""
    t = tl.minimum(tl.abs(u), BOUND, propagate_nan=tl.PropagateNan.ALL)
    if u.dtype == tl.float64:
        q = 0.5 - 0.5 * tl.erf(t * 0.7071067811865476)
    else:
        p = -2.1737127653409516e-08 * t + 6.779773116249999e-07
        p = p * t - 9.043488716997672e-06
        p = p * t + 6.537634908454493e-05
        p = p * t - 0.00024215734447352588
        p = p * t - 7.581715181004256e-05
        p = p * t + 0.007035990711301565
        p = p * t - 0.05249791592359543
        p = p * t - 0.4592040181159973
        p = p * t - 1.1511058807373047
        q = tl.exp2(p * t - 1.0)
    return t, q


@triton.jit
def sigmoid_parts(s):
    """sigmoid(s) and its derivative."""
    a = tl.exp2(tl.abs(s) * -1.4426950408889634)
    r = 1.0 / (1.0 + a)
    return tl.where(s < 0, a * r, r), a * r * r


@triton.jit
def tanh_argument(u):
    """s, and its derivative: gelu_tanh is u sigmoid(s)."""
    square = u * u
    return u * (1.5957691216057308 + 0.07135481627260025 * square), 1.5957691216057308 + 0.21406444881780076 * square


@triton.jit
def gelu(u, ACTIVATION: tl.constexpr):
    """u Phi(u), or what ACTIVATION names: gelu, gelu_tanh or quick_gelu."""
    if ACTIVATION == "gelu":
        t, q = negative_side(u)
        return tl.where(u < 0, 0.0, u) - t * q
    elif ACTIVATION == "gelu_tanh":
        s, _ = tanh_argument(u)
        return u * sigmoid_parts(s)[0]
    else:
        return u * sigmoid_parts(1.702 * u)[0]


@triton.jit
def gelu_derivative(u, ACTIVATION: tl.constexpr):
    """Derivative of `gelu` by u."""
    if ACTIVATION == "gelu":
        t, q = negative_side(u)
        d = q - t * tl.exp2(t * t * -0.7213475204444817) * 0.3989422804014327
        return tl.where(u < 0, d, 1.0 - d)
    elif ACTIVATION == "gelu_tanh":
        s, slope = tanh_argument(u)
        value, derivative = sigmoid_parts(s)
        return value + u * slope * derivative
    else:
        value, derivative = sigmoid_parts(1.702 * u)
        return value + 1.702 * u * derivative
