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

from camal_rl.attention import upsample

EMPTY_MASK: tuple[str, ...] = ("ignore", "suppress")
METHODS: tuple[str, ...] = ("camal", "suppress")
# OpenBLAS runs a product of more multiply-adds than this on several threads, which gains nothing at these
# sizes and takes the cores from the game engines.
SINGLE_THREAD_PRODUCT = 2**18


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
    inside = mask.to(heat.dtype)
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


def mask_weights(
    mask: NDArray[np.uint8] | NDArray[np.bool_],
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
        mask: (H, W) or (N, H, W), uint8 in {0, 1} or bool.
        size: (h, w) of the attention map.
        out: array of shape (2, h, w) or (N, 2, h, w) to write to and return.
        dtype: of the result, where `out` is not given.

    Raises:
        ValueError: shapes or dtype that do not fit, or masks with values other than 0 and 1.
    """
    if mask.ndim not in (2, 3) or mask.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"mask must be uint8 or bool of shape (H, W) or (N, H, W), got {mask.dtype} of shape {mask.shape}"
        )
    shape = (*mask.shape[:-2], 2, *size)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    pixels = mask.view(np.uint8)
    if mask.ndim == 2:
        _project(pixels, out)
    else:
        for one_mask, one_out in zip(pixels, out, strict=True):
            _project(one_mask, one_out)
    return out


def _project(mask: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """`mask_weights` of one mask, (H, W) -> (2, h, w)."""
    height, width = out.shape[1:]
    rows, columns = _interpolation(mask.shape[0], height), _interpolation(mask.shape[1], width)
    everywhere = _everywhere(*mask.shape, height, width)  # (h, w)
    inside_pixels = cv2.countNonZero(mask)
    outside_pixels = mask.size - inside_pixels
    if inside_pixels == 0:
        out[0] = 0
        out[1] = everywhere / outside_pixels
        return
    x, y, box_width, box_height = cv2.boundingRect(mask)
    box = mask[y : y + box_height, x : x + box_width]
    inside = _product(rows[y : y + box_height].T, _product(box, columns[x : x + box_width]))  # (h, w)
    if inside.sum() > inside_pixels + 0.5:  # U^T keeps the sum, so this is the sum of the mask
        raise ValueError(
            f"mask must hold 0 and 1 only, got values up to {mask.max()}: "
            "pass mask != 0, or compare a label image with the labels that are targets"
        )
    out[0] = inside / inside_pixels
    # Where the mask covers all that a cell sees, rounding can leave a difference just below zero.
    out[1] = np.maximum(everywhere - inside, 0) / outside_pixels if outside_pixels else 0


def _product(left: NDArray[Any], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right by blocks of rows, each small enough for one thread."""
    block = max(1, SINGLE_THREAD_PRODUCT // right.size)
    if len(left) <= block:
        return left @ right
    return np.concatenate([left[start : start + block] @ right for start in range(0, len(left), block)])


@lru_cache
def _interpolation(length: int, size: int) -> NDArray[np.float64]:
    """Bilinear interpolation (align_corners=False) along one axis as a matrix, (length, size), read-only."""
    source = np.maximum((np.arange(length) + 0.5) * (size / length) - 0.5, 0)  # (length,)
    lower = np.minimum(source.astype(np.intp), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    fraction = source - lower
    matrix = np.zeros((length, size))
    # Added one after the other because beyond the last centre both neighbours are the same cell.
    matrix[np.arange(length), lower] += 1 - fraction
    matrix[np.arange(length), upper] += fraction
    matrix.flags.writeable = False
    return matrix


@lru_cache
def _everywhere(height: int, width: int, map_height: int, map_width: int) -> NDArray[np.float64]:
    """U^T of a full mask, (h, w), read-only."""
    weights = np.outer(_interpolation(height, map_height).sum(0), _interpolation(width, map_width).sum(0))
    weights.flags.writeable = False
    return weights


def _mean_loss(alpha: Tensor, beta: Tensor, has_target: Tensor, empty_mask: str, method: str) -> Tensor:
    """The averaging rule of `camal_loss`: alpha, beta, has_target (B,) -> scalar."""
    if empty_mask not in EMPTY_MASK:
        raise ValueError(f"unknown empty_mask {empty_mask!r}; valid: {', '.join(EMPTY_MASK)}")
    if method not in METHODS:
        raise ValueError(f"unknown loss method {method!r}; valid: {', '.join(METHODS)}")
    losses = beta - alpha if method == "camal" else beta  # (B,)
    counted = has_target if empty_mask == "ignore" else torch.ones_like(has_target)
    return (losses * counted).sum() / counted.sum().clamp(min=1)
