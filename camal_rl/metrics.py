"""Attention map and mask -> how well they agree. Plain functions on arrays, (B, H, W) in, (B,) out."""

from __future__ import annotations

import cv2
import numpy as np

TAU = 0.7
"""Threshold above which a pixel counts as attended to (paper, Appendix C)."""


def iou(heat: np.ndarray, mask: np.ndarray, tau: float = TAU) -> np.ndarray:
    """Intersection over union of the pixels with heat above `tau` and the mask (Eq. 8), float64 (B,).

    Args:
        heat: float32 (B, h, w) in [0, 1]; upsampled bilinearly to the mask's resolution.
        mask: uint8 (B, H, W) of zeros and ones.

    NaN where both are empty: there was nothing to find, and nothing was found.
    """
    scores = np.full(len(mask), np.nan)
    for index, (one_heat, one_mask) in enumerate(zip(heat, mask, strict=True)):
        # Frame by frame, because a frame fits into the cache and a batch does not.
        pixels = cv2.resize(one_heat, (mask.shape[2], mask.shape[1]), interpolation=cv2.INTER_LINEAR)
        attended = (np.asarray(pixels) > tau).view(np.uint8)
        intersection = np.count_nonzero(attended & one_mask)
        union = np.count_nonzero(attended | one_mask)
        if union:
            scores[index] = intersection / union
    return scores


def iou_ceiling(mask_weights: np.ndarray, mask: np.ndarray, tau: float = TAU) -> np.ndarray:
    """The IoU that the mask itself reaches when it is shown at the attention map's resolution, float64 (B,).

    A 7 x 7 map can't outline a monster of 20 pixels, however well it attends: read every IoU beside this.

    Args:
        mask_weights: (B, 2, h, w), the masks projected to the map's resolution by `camal.mask_weights`.
        mask: uint8 (B, H, W) of zeros and ones, none of them empty.
    """
    covered = mask.sum(axis=(1, 2), dtype=np.int64)[:, None, None]  # (B, 1, 1)
    inside = mask_weights[:, 0] * covered  # (B, h, w)
    outside = mask_weights[:, 1] * (mask[0].size - covered)
    # Divided by what a full mask gives, because a cell at the border gathers from fewer pixels.
    share = inside / (inside + outside)
    low, high = share.min(axis=(1, 2), keepdims=True), share.max(axis=(1, 2), keepdims=True)
    span = np.where(high > low, high - low, 1)
    return iou(np.where(high > low, (share - low) / span, 0).astype(np.float32), mask, tau)
