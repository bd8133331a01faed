"""Attention map and segmentation mask -> alpha, beta and the CAMAL loss (Eq. 1, 2).

Eq. 1 is linear in the attention map and so is bilinear upsampling. A mask can therefore be projected once to
two weight maps at feature-map resolution, after which the loss needs neither the mask nor any upsampling.
"""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from camal_rl import SINGLE_THREAD_PRODUCT
from camal_rl.attention import upsample

EMPTY_MASK: tuple[str, ...] = ("ignore", "suppress")
METHODS: tuple[str, ...] = ("camal", "suppress")


def alpha_beta(heat: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention inside and outside the mask, Eq. 1: two tensors of shape (B,), in [0, 1].

    Args:
        heat: (B, H, W) in [0, 1], at the mask's resolution.
        mask: (B, H, W) of zeros and ones, any dtype.

    A mean over no pixels is defined as 0 with zero gradient: alpha of an empty mask, beta of a full one.
    """
    if heat.dim() != 3 or heat.shape != mask.shape:
        raise ValueError(
            "heat and mask must have the same shape (B, H, W), "
            f"got {tuple(heat.shape)} and {tuple(mask.shape)}"
        )
    # float16 can't hold the number of pixels of a mask.
    inside = mask.to(torch.promote_types(heat.dtype, torch.float32))
    outside = 1 - inside
    alpha, beta = (
        (heat * region).sum(dim=(1, 2)) / region.sum(dim=(1, 2)).clamp(min=1) for region in (inside, outside)
    )
    return alpha, beta


def camal_loss(heat: Tensor, mask: Tensor, *, empty_mask: str = "ignore", method: str = "camal") -> Tensor:
    """L_CAMAL of Eq. 2 without lambda: a scalar in [-1, 1], the mean of beta - alpha.

    Args:
        heat: (B, h, w) in [0, 1]; at another resolution than the mask's it is upsampled to it bilinearly.
        mask: (B, H, W) of zeros and ones, any dtype.
        empty_mask: what a sample whose mask is empty, so that alpha is undefined, contributes. "ignore":
            nothing, and the mean is over the other samples; if there are none the loss is 0 with zero
            gradient. "suppress": its beta, and the mean is over all samples.
        method: "camal", or "suppress" for the mean of beta alone (earlier regularisers, Table 4).

    A full mask has no outside, so its sample contributes -alpha to "camal" and 0 to "suppress".
    """
    if heat.dim() != 3 or mask.dim() != 3 or len(heat) != len(mask):
        raise ValueError(
            "heat (B, h, w) and mask (B, H, W) must be of one batch, "
            f"got {tuple(heat.shape)} and {tuple(mask.shape)}"
        )
    if heat.shape != mask.shape:
        heat = upsample(heat, (mask.shape[1], mask.shape[2]))  # (B, H, W)
    alpha, beta = alpha_beta(heat, mask)
    return _mean_loss(alpha, beta, (mask != 0).flatten(1).any(dim=1), empty_mask, method)


def projected_loss(
    heat: Tensor, weights: Tensor, *, empty_mask: str = "ignore", method: str = "camal"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`camal_loss` from projected masks: the same numbers without upsampling.

    Args:
        heat: (B, h, w) in [0, 1].
        weights: (B, 2, h, w), what `mask_weights` made of the masks.
        empty_mask, method: as in `camal_loss`.

    Returns:
        The loss (scalar), alpha (B,), beta (B,), all part of the graph, and has_target (B,) bool.
    """
    if heat.dim() != 3 or weights.shape != (heat.shape[0], 2, *heat.shape[1:]):
        raise ValueError(
            "heat (B, h, w) and weights (B, 2, h, w) do not fit, "
            f"got {tuple(heat.shape)} and {tuple(weights.shape)}"
        )
    alpha, beta = (heat.unsqueeze(1) * weights).sum(dim=(2, 3)).unbind(dim=1)
    has_target = (weights[:, 0] > 0).flatten(1).any(dim=1)
    return _mean_loss(alpha, beta, has_target, empty_mask, method), alpha, beta, has_target


def costs(weights: Tensor, *, empty_mask: str = "ignore", method: str = "camal") -> tuple[Tensor, Tensor]:
    """What attention at each place adds to the loss, which depends on the masks alone.

    The loss of `projected_loss` is the sum of heat * costs over all samples, divided by how many are counted.

    Args:
        weights, empty_mask, method: as for `projected_loss`.

    Returns:
        (B, h, w), zero for samples that are not counted, and which are counted, bool (B,).
    """
    _check(empty_mask, method)
    alpha, beta = weights.unbind(dim=1)  # (B, h, w)
    counted = _counted((alpha > 0).flatten(1).any(dim=1), empty_mask)
    return (beta - alpha if method == "camal" else beta) * counted[:, None, None], counted


def mean_cost(heat: Tensor, costs: Tensor, count: Tensor) -> Tensor:
    """The loss of `projected_loss` from `costs`, a scalar: of a whole batch, or its part of one.

    Args:
        heat: (B, h, w) in [0, 1].
        costs: (B, h, w).
        count: a scalar, how many samples of the whole batch are counted.
    """
    return (heat * costs).sum() / count.clamp(min=1)


def mask_weights(
    mask: NDArray[np.uint8] | NDArray[np.bool_] | NDArray[np.floating],
    size: tuple[int, int],
    *,
    out: NDArray[Any] | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Project masks to feature-map resolution: alpha = <heat, weights[0]> and beta = <heat, weights[1]>.

    weights[0] = U^T M / |M| and weights[1] = U^T (1 - M) / |1 - M|, where U is the bilinear upsampling of
    `attention.upsample`. Each sums to 1; an empty mask makes weights[0] zero, a full one weights[1].

    Runs on one thread and multiplies only the mask's bounding box, in float64.

    Args:
        mask: (H, W) or (N, H, W), uint8 in {0, 1} or bool; or floating point in [0, 1], a soft mask such as a
            prior's regions.
        size: (h, w) of the attention map.
        out: array of shape (2, h, w) or (N, 2, h, w) to write to and return.
        dtype: of the result, where `out` is not given.

    Raises:
        ValueError: shapes or dtype that do not fit, or masks with values other than 0 and 1 (soft: outside).
    """
    soft = np.issubdtype(mask.dtype, np.floating)
    if mask.ndim not in (2, 3) or not (soft or mask.dtype in (np.uint8, np.bool_)):
        raise ValueError(
            "mask must be uint8, bool or floating point of shape (H, W) or (N, H, W), "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    pixels = mask if soft else mask.view(np.uint8)
    if soft and not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError("a soft mask must lie in [0, 1]")
    if (highest := pixels.max(initial=0)) > 1:
        raise ValueError(
            f"mask must hold 0 and 1 only, got values up to {highest}: "
            "pass mask != 0, or compare a label image with the labels that are targets"
        )
    shape = (*mask.shape[:-2], 2, *size)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    projection = _projection((mask.shape[-2], mask.shape[-1]), size)
    frames = pixels[None] if mask.ndim == 2 else pixels
    everywhere = (slice(None), slice(None)) if soft else None
    sums = np.array([projection(one, everywhere) for one in frames]).reshape(len(frames), *size)
    out[...] = projection.weights(sums, soft=soft).reshape(shape)
    return out


class Projection:
    """`mask_weights` for games, in two steps: sums of one mask after another, then the weights of all.

    Nothing is checked, and masks and maps are all of one size.

    Args:
        mask_size: (H, W) of the masks.
        map_size: (h, w) of the attention map.
    """

    def __init__(self, mask_size: tuple[int, int], map_size: tuple[int, int]) -> None:
        rows, columns = (_interpolation(*pair) for pair in zip(mask_size, map_size, strict=True))
        self.map_size = map_size
        self._pixels = mask_size[0] * mask_size[1]
        self._rows, self._columns = np.ascontiguousarray(rows.T), columns  # (h, H) and (W, w)
        self._everywhere = np.outer(rows.sum(0), columns.sum(0))  # of a full mask, (h, w)

    def __call__(
        self, mask: NDArray[np.uint8], box: tuple[slice, slice] | None = None
    ) -> NDArray[np.float64]:
        """U^T M, (h, w), of a mask (H, W) of zeros and ones, empty outside of `box` (rows, columns)."""
        if box is None:
            x, y, width, height = cv2.boundingRect(mask)
            box = slice(y, y + height), slice(x, x + width)
        rows, columns = box
        across = _product(mask[box], self._columns[columns])  # (height, w)
        sums: NDArray[np.float64] = self._rows[:, rows] @ across
        return sums

    def weights(self, sums: NDArray[np.float64], soft: bool = False) -> NDArray[np.float64]:
        """(..., h, w), each as the call gives it -> (..., 2, h, w); soft masks are no whole numbers."""
        inside = sums.sum(axis=(-2, -1), keepdims=True)  # U^T keeps the sum
        if not soft:
            inside = np.rint(inside)
        # Where a mask covers all that a cell sees, rounding can leave a difference just below zero.
        outside_sums = np.maximum(self._everywhere - sums, 0)
        parts = (sums / np.maximum(inside, 1), outside_sums / np.maximum(self._pixels - inside, 1))
        full = inside == self._pixels
        return np.stack((parts[0], np.where(full, 0, parts[1])), axis=-3)


_projection = lru_cache(Projection)


def _product(left: NDArray[Any], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right by blocks of rows, each small enough for one thread."""
    block = max(1, SINGLE_THREAD_PRODUCT // max(right.size, 1))
    if len(left) <= block:
        return left @ right
    return np.concatenate([left[start : start + block] @ right for start in range(0, len(left), block)])


def _interpolation(length: int, size: int) -> NDArray[np.float64]:
    """Bilinear interpolation (align_corners=False) along one axis as a matrix, (length, size)."""
    source = np.maximum((np.arange(length) + 0.5) * (size / length) - 0.5, 0)  # (length,)
    lower = np.minimum(source.astype(np.intp), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    fraction = source - lower
    matrix = np.zeros((length, size))
    # Added one after the other because beyond the last centre both neighbours are the same cell.
    matrix[np.arange(length), lower] += 1 - fraction
    matrix[np.arange(length), upper] += fraction
    return matrix


def _mean_loss(alpha: Tensor, beta: Tensor, has_target: Tensor, empty_mask: str, method: str) -> Tensor:
    """The averaging rule of `camal_loss`: alpha, beta, has_target (B,) -> scalar."""
    _check(empty_mask, method)
    losses = beta - alpha if method == "camal" else beta  # (B,)
    counted = _counted(has_target, empty_mask)
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def _counted(has_target: Tensor, empty_mask: str) -> Tensor:
    """Which samples the mean is over, bool (B,)."""
    return has_target if empty_mask == "ignore" else torch.ones_like(has_target)


def _check(empty_mask: str, method: str) -> None:
    if empty_mask not in EMPTY_MASK:
        raise ValueError(f"unknown empty_mask {empty_mask!r}; valid: {', '.join(EMPTY_MASK)}")
    if method not in METHODS:
        raise ValueError(f"unknown loss method {method!r}; valid: {', '.join(METHODS)}")
