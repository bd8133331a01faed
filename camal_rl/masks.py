"""Label buffer -> target mask -> two weight maps at the resolution of the attention map (Eq. 1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
import vizdoom
from numpy.typing import DTypeLike, NDArray

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
    assert state.labels is not None
    assert state.labels_buffer is not None
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
    frames = pixels[None] if mask.ndim == 2 else pixels
    out = np.empty((len(frames), 2, *size), dtype)
    for frame, weights in zip(frames, out, strict=True):
        x, y, width, height = (0, 0, *frame.shape[::-1]) if soft else cv2.boundingRect(frame)
        projection(frame, (slice(y, y + height), slice(x, x + width)), weights)
    return out[0] if mask.ndim == 2 else out


class Projection:
    """`mask_weights` for masks and maps that are all of one size; nothing is checked.

    Args:
        mask_size: (H, W) of the masks.
        map_size: (h, w) of the attention map.
    """

    def __init__(self, mask_size: tuple[int, int], map_size: tuple[int, int]) -> None:
        rows, columns = (_interpolation(*pair) for pair in zip(mask_size, map_size, strict=True))
        self._pixels = mask_size[0] * mask_size[1]
        self._rows, self._columns = np.ascontiguousarray(rows.T), columns  # (h, H) and (W, w)
        self._everywhere = np.outer(rows.sum(0), columns.sum(0))  # of a full mask, (h, w)

    def __call__(self, mask: NDArray[Any], box: Box, out: NDArray[Any]) -> None:
        """Write the weights of a mask, uint8 or soft (H, W), empty outside `box`, into `out`, (2, h, w)."""
        rows, columns = box
        sums = self._rows[:, rows] @ _product(mask[box], self._columns[columns])  # U^T M, (h, w)
        inside = float(sums.sum())  # U^T keeps the sum
        if mask.dtype == np.uint8:
            inside = round(inside)
        np.divide(sums, max(inside, 1), out=out[0], casting="same_kind")
        if inside == self._pixels:
            out[1] = 0
            return
        # Where a mask covers all that a cell sees, rounding can leave a difference just below zero.
        outside = np.maximum(self._everywhere - sums, 0)
        np.divide(outside, max(self._pixels - inside, 1), out=out[1], casting="same_kind")


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
