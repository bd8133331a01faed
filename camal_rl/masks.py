"""Label buffer -> target mask -> two weight maps at the resolution of the attention map (Eq. 1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
import vizdoom
from numpy.typing import DTypeLike, NDArray

from camal_rl.errors import UserError
from camal_rl.game.frames import SINGLE_THREAD_PRODUCT

Box = tuple[slice, slice]
"""Rows and columns."""


class Targets(Protocol):
    """An environment's definition, as far as masks need it."""

    def is_target(self, name: str, category: str) -> bool:
        """Return whether an object with this label is a target."""


def target_mask(state: vizdoom.GameState, definition: Targets, out: np.ndarray) -> Box:
    """Write the pixels of the targets as ones, all others as zeros, into `out`, uint8 (h_label, w_label).

    Returns:
        A box outside of which the mask is empty.
    """
    if state.labels is None or state.labels_buffer is None:
        raise UserError("the engine gives no labels: take +viz_nocheat and +viz_labels out of game_args.")
    out.fill(0)
    pixels = out.view(np.bool_)
    top, left = out.shape
    bottom = right = 0
    for label in state.labels:
        # Walls and floors have 0 and 1, also where a crowd of labels has used up the values.
        if label.value > 1 and definition.is_target(label.object_name, label.object_category):
            # An object is drawn within its label's box; which pixels of it can be seen, the buffer knows.
            box = slice(label.y, label.y + label.height), slice(label.x, label.x + label.width)
            part = pixels[box]
            np.logical_or(part, state.labels_buffer[box] == label.value, out=part)
            top, bottom = min(top, box[0].start), max(bottom, box[0].stop)
            left, right = min(left, box[1].start), max(right, box[1].stop)
    return slice(top, max(top, bottom)), slice(left, max(left, right))


def mask_weights(
    mask: NDArray[np.uint8] | NDArray[np.bool_] | NDArray[np.floating],
    size: tuple[int, int],
    *,
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
        dtype: of the result.

    Returns:
        The weights, (2, h, w) or (N, 2, h, w).

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
    projection = _projection((mask.shape[-2], mask.shape[-1]), size)
    sums = np.zeros((*mask.shape[:-2], *size))
    for frame, of_frame in zip(pixels.reshape(-1, *mask.shape[-2:]), sums.reshape(-1, *size), strict=True):
        x, y, width, height = (0, 0, *frame.shape[::-1]) if soft else cv2.boundingRect(frame)
        of_frame[:] = projection(frame, (slice(y, y + height), slice(x, x + width)))
    return projection.weights(sums, soft).astype(dtype)


class Projection:
    """`mask_weights` for games, in two steps: sums of one mask after another, then the weights of several.

    Nothing is checked, and masks and maps are all of one size.

    Args:
        mask_size: (H, W) of the masks.
        map_size: (h, w) of the attention map.
    """

    def __init__(self, mask_size: tuple[int, int], map_size: tuple[int, int]) -> None:
        rows, columns = (_interpolation(*pair) for pair in zip(mask_size, map_size, strict=True))
        self._pixels = mask_size[0] * mask_size[1]
        self._rows, self._columns = np.ascontiguousarray(rows.T), columns  # (h, H) and (W, w)
        self._everywhere = np.outer(rows.sum(0), columns.sum(0))  # of a full mask, (h, w)

    def __call__(self, mask: NDArray[Any], box: Box) -> NDArray[np.float64]:
        """Return U^T M, (h, w), of a mask (H, W) that is empty outside `box`."""
        rows, columns = box
        sums: NDArray[np.float64] = self._rows[:, rows] @ _product(mask[box], self._columns[columns])
        return sums

    def weights(self, sums: NDArray[np.float64], soft: bool = False) -> NDArray[np.float64]:
        """Return the weights, (..., 2, h, w), of masks whose sums are (..., h, w)."""
        inside = sums.sum(axis=(-2, -1), keepdims=True)  # U^T keeps the sum
        if not soft:
            inside = np.rint(inside)
        outside = self._pixels - inside
        # Where a mask covers all that a cell sees, rounding can leave a difference just below zero.
        rest = np.maximum(self._everywhere - sums, 0) * (outside > 0)
        return np.stack((sums / np.maximum(inside, 1), rest / np.maximum(outside, 1)), axis=-3)


_projection = lru_cache(Projection)


def _product(left: NDArray[Any], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right by blocks of rows, each small enough for one thread."""
    block = max(1, SINGLE_THREAD_PRODUCT // max(right.size, 1))
    if len(left) <= block:
        return left @ right
    return np.concatenate([left[start : start + block] @ right for start in range(0, len(left), block)])


def _interpolation(length: int, size: int) -> NDArray[np.float64]:
    """Bilinear interpolation (align_corners=False) along one axis as a matrix, (length, size)."""
    source = np.clip((np.arange(length) + 0.5) * (size / length) - 0.5, 0, size - 1)  # (length,)
    matrix: NDArray[np.float64] = np.maximum(1 - np.abs(source[:, None] - np.arange(size)), 0)
    return matrix
