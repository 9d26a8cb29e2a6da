"""Smooth, orientation-preserving maps between two crops: a similarity after a thin-plate spline, with its Jacobian."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# Three by five: on the usual crop, twice as high as wide, neighbours are equally far in pixels.
CONTROL_GRID = (3, 5)
CONTROLS = CONTROL_GRID[0] * CONTROL_GRID[1]

# A bend is weakened until det(I + d') >= 0.3 on a grid of at most 1/8 by 1/16, every control point among its points.
# d' is continuous (its modulus is that of r log r), so that little is lost between them; the rest is margin.
_DETERMINANT_FLOOR = 0.3
_CHECK_GRID = (17, 33)


class Warp:
    """W from coordinates of a copy to coordinates of its original, for a batch of crops.

        W(u) = A (u + d(u)) + t,   A = D^-1 s R(angle) D,   R(a) = [[cos a, -sin a], [sin a, cos a]]

    u = (x, y) in [-1, 1]^2, x first, so that a crop of H x W pixels has other units along x and y; D = diag(W, H)
    / max(W, H) makes them equal, and A therefore turns people instead of shearing them. The copy shows the original at
    W(u), so that s > 1 makes people smaller and a positive angle turns them counter-clockwise on the screen (y points
    down). d is the thin-plate spline through given displacements of 3 x 5 control points c (x in {-1, 0, 1}, y in
    {-1, -1/2, ..., 1}):

        d(u) = sum_k w_k phi(|D (u - c_k)|^2) + a_0 + a_1 x + a_2 y,   phi(r^2) = r^2 log r^2,   phi(0) = 0,
        sum_k w_k = 0,   sum_k w_k c_k = 0,

    the interpolant of least bending energy in pixel proportions. W is linear in the functions (phi_1..phi_15, 1, x, y),
    and their coefficients are all that is kept. Its first derivatives are continuous; the second ones have logarithmic
    poles at the control points.

    Args:
        coefficients: (B, 18, 2) of the functions above, float64 to keep what the solution has.
        proportions: The diagonal of D.

    Source: thin-plate splines, Bookstein 1989.
    """

    def __init__(self, coefficients: Tensor, proportions: tuple[float, float]) -> None:
        if coefficients.ndim != 3 or coefficients.shape[1:] != (CONTROLS + 3, 2):
            raise ValueError(f"coefficients must be (B, {CONTROLS + 3}, 2), got {tuple(coefficients.shape)}")
        self.coefficients = coefficients
        self.proportions = proportions

    @classmethod
    def compose(
        cls,
        size: tuple[int, int],
        *,
        angle: Tensor,
        scale: Tensor,
        shift: Tensor,
        displacements: Tensor | None = None,
    ) -> Warp:
        """Builds W from its parameters; a bend that would fold is weakened.

        Displacements are multiplied by the largest factor in [0, 1] (of whole 1/1024) for which det(I + d') >= 0.3 on a
        dense grid over the crop, so that det J_W = s^2 det(I + d') stays positive.

        Args:
            size: (height, width) of the crops in pixels; only their ratio matters.
            angle: (B,) in radians.
            scale: (B,) s, positive.
            shift: (B, 2) t.
            displacements: (B, 15, 2) d at the control points, x fastest; None: no bend.

        Raises:
            ValueError: if a shape is another.
        """
        count = len(angle)
        if displacements is None:
            displacements = torch.zeros(count, CONTROLS, 2, device=angle.device)
        shapes = {"angle": (angle, (count,)), "scale": (scale, (count,)), "shift": (shift, (count, 2))}
        for name, (value, shape) in {**shapes, "displacements": (displacements, (count, CONTROLS, 2))}.items():
            if value.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {tuple(value.shape)}")
        if min(size) < 1:
            raise ValueError(f"size must be a positive height and width, got {size}")
        angle, scale, shift, displacements = (one.double() for one in (angle, scale, shift, displacements))
        proportions = (size[1] / max(size), size[0] / max(size))
        solution, check = _thin_plate(proportions)
        solution, check = solution.to(angle.device), check.to(angle.device)
        displacements = displacements * _unfolding(displacements, check)[:, None, None]
        bent = (solution[:, :, None] * displacements[:, None]).sum(2)
        bent[:, -2:] += torch.eye(2, dtype=torch.float64, device=angle.device)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        ratio = proportions[1] / proportions[0]
        x, y = bent.unbind(2)
        coefficients = torch.stack(
            [cos[:, None] * x - (sin * ratio)[:, None] * y, (sin / ratio)[:, None] * x + cos[:, None] * y], 2
        )
        coefficients[:, CONTROLS] += shift
        return cls(coefficients, proportions)

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: Tensor | slice) -> Warp:
        """The warps of a subset of the batch: indices, a mask or a slice."""
        return Warp(self.coefficients[index], self.proportions)

    def to(self, device: torch.device | str) -> Warp:
        """The same on another device."""
        return Warp(self.coefficients.to(device), self.proportions)

    def __call__(self, points: Tensor) -> Tensor:
        """W(u).

        Args:
            points: (B, P, 2), float32 or float64, inside the crop or not. Differentiable.

        Returns:
            (B, P, 2) in the dtype of the points.

        Raises:
            TypeError: if the points are of another dtype.
            ValueError: if their shape is another.
        """
        coefficients = self._coefficients(points)
        # A product and a sum, not a matrix product: autocast and TF32 would round it.
        return (_functions(points, self.proportions)[..., None] * coefficients[:, None]).sum(2)

    def jacobian(self, points: Tensor) -> Tensor:
        """J_W(u), analytic: J[..., i, j] = dW_i / du_j.

        Args:
            points: (B, P, 2), float32 or float64. Differentiable; finite also at a control point itself, where the
                second derivatives have a pole.

        Returns:
            (B, P, 2, 2) in the dtype of the points.

        Raises:
            TypeError: if the points are of another dtype.
            ValueError: if their shape is another.
        """
        coefficients = self._coefficients(points)
        bend, linear = coefficients[:, :CONTROLS], coefficients[:, -2:]
        slopes = _kernel_gradients(points, self.proportions)
        return (bend[:, None, :, :, None] * slopes[..., None, :]).sum(2) + linear.mT[:, None]

    def on_pixels(self, size: tuple[int, int]) -> Tensor:
        """W at the pixel centres of a crop, as ``F.grid_sample`` wants it: (B, H, W, 2), float32."""
        functions = _pixel_functions(size, self.proportions, str(self.coefficients.device))
        values = functions @ self.coefficients.permute(1, 0, 2).reshape(CONTROLS + 3, -1)
        return values.float().view(*size, len(self), 2).permute(2, 0, 1, 3).contiguous()

    def _coefficients(self, points: Tensor) -> Tensor:
        if points.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"points must be float32 or float64, got {points.dtype}")
        if points.ndim != 3 or len(points) != len(self) or points.shape[2] != 2:
            raise ValueError(f"points must be ({len(self)}, P, 2), got {tuple(points.shape)}")
        return self.coefficients.to(points.device, points.dtype)


def control_points() -> Tensor:
    """(15, 2) float64, x fastest."""
    x, y = (torch.linspace(-1, 1, count, dtype=torch.float64) for count in CONTROL_GRID)
    return torch.cartesian_prod(y, x).flip(1)


@lru_cache(maxsize=16)
def _constants(proportions: tuple[float, float], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Control points and the diagonal of D, kept on the device: copies to a GPU would wait for it."""
    with torch.inference_mode(False):  # autograd refuses tensors that were made in it
        return control_points().to(device, dtype), torch.tensor(proportions, device=device, dtype=dtype)


def _offsets(points: Tensor, proportions: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """D (u - c) (..., 15, 2) and log |D (u - c)|^2 (..., 15, 1), finite at u = c."""
    controls, diagonal = _constants(proportions, str(points.device), points.dtype)
    offsets = (points[..., None, :] - controls) * diagonal
    squared = offsets.square().sum(-1, keepdim=True)
    return offsets, squared.clamp_min(torch.finfo(points.dtype).tiny).log()


def _functions(points: Tensor, proportions: tuple[float, float]) -> Tensor:
    """(..., 2) -> (..., 18): phi of the 15 control points, 1, x, y."""
    offsets, logarithm = _offsets(points, proportions)
    kernel = offsets.square().sum(-1) * logarithm.squeeze(-1)
    return torch.cat([kernel, torch.ones_like(points[..., :1]), points], -1)


def _kernel_gradients(points: Tensor, proportions: tuple[float, float]) -> Tensor:
    """(..., 2) -> (..., 15, 2): d phi / du = 2 D^2 (u - c) (log r^2 + 1), 0 at r = 0."""
    offsets, logarithm = _offsets(points, proportions)
    return 2 * offsets * (logarithm + 1) * _constants(proportions, str(points.device), points.dtype)[1]


@lru_cache(maxsize=16)
def _thin_plate(proportions: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(18, 15): displacements of the control points to coefficients; (15, G * 2): to the gradients at the check grid.

    The first columns of the inverse of [[Phi, P], [P^T, 0]], P = (1, x, y), whose last rows are the side conditions.
    """
    controls = control_points()
    functions = _functions(controls, proportions)
    system = torch.zeros(CONTROLS + 3, CONTROLS + 3, dtype=torch.float64)
    system[:CONTROLS] = functions
    system[CONTROLS:, :CONTROLS] = functions[:, CONTROLS:].T
    solution = torch.linalg.inv(system)[:, :CONTROLS]
    x, y = (torch.linspace(-1, 1, count, dtype=torch.float64) for count in _CHECK_GRID)
    slopes = _kernel_gradients(torch.cartesian_prod(x, y), proportions)
    gradients = torch.einsum("kc,gkj->cgj", solution[:CONTROLS], slopes) + solution[-2:].T[:, None]
    return solution, gradients.reshape(CONTROLS, -1)


def _unfolding(displacements: Tensor, check: Tensor) -> Tensor:
    """(B,) the largest factor e in [0, 1] with det(I + e d') = 1 + e tr d' + e^2 det d' >= floor on the check grid."""
    slopes = (displacements.mT.reshape(-1, CONTROLS) @ check).view(len(displacements), 2, check.shape[1] // 2, 2)
    (xx, xy), (yx, yy) = (slopes[:, row].unbind(-1) for row in range(2))
    trace, determinant, drop = xx + yy, xx * yy - xy * yx, 1 - _DETERMINANT_FLOOR
    discriminant = trace.square() - 4 * drop * determinant
    # The smallest positive root, in the form without cancellation; where there is none, the floor is never reached.
    divisor = discriminant.clamp_min(0).sqrt() - trace
    reached = (discriminant >= 0) & (divisor > 0)
    factor = torch.where(reached, 2 * drop / divisor, math.inf).amin(1).clamp_max(1)
    # Rounded down, so that the last bits of the matrix product, which may depend on threads, do not reach the pixels.
    return (factor * 1024).floor() / 1024


@lru_cache(maxsize=16)
def _pixel_functions(size: tuple[int, int], proportions: tuple[float, float], device: str) -> Tensor:
    """(H * W, 18) in float64: a matrix product in it is fp32-exact whatever the threads or TF32 do."""
    y, x = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in size)
    return _functions(torch.cartesian_prod(y, x).flip(1), proportions).to(device)
