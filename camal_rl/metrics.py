"""Attention map and mask -> how well they agree. Plain functions on batches, shapes (B, H, W) in, (B,) out."""

from __future__ import annotations

from torch import Tensor

from camal_rl.attention import normalize, upsample

TAU = 0.7
"""Threshold above which a pixel counts as attended to (paper, Appendix C)."""


def iou(heat: Tensor, mask: Tensor, tau: float = TAU) -> Tensor:
    """Intersection over union of the pixels with heat above `tau` and the mask (Eq. 8), (B,).

    Args:
        heat: (B, h, w) in [0, 1]; at another resolution than the mask's it is upsampled to it bilinearly.
        mask: (B, H, W) of zeros and ones, any dtype.

    NaN where both are empty: nothing was there to find and nothing was found.
    """
    if heat.shape != mask.shape:
        heat = upsample(heat, (mask.shape[1], mask.shape[2]))
    attended, target = heat > tau, mask > 0
    intersection = (attended & target).sum(dim=(1, 2))
    union = (attended | target).sum(dim=(1, 2))
    return intersection / union


def iou_ceiling(mask_weights: Tensor, mask: Tensor, tau: float = TAU) -> Tensor:
    """The IoU that the mask itself reaches when it is shown at the attention map's resolution, (B,).

    A 7 x 7 map can't outline a monster of 20 pixels, however well it attends: read every IoU beside this.

    Args:
        mask_weights: (B, 2, h, w), the masks projected to the map's resolution by `camal.mask_weights`.
        mask: (B, H, W) of zeros and ones, any dtype.
    """
    inside = mask_weights[:, 0] * (mask > 0).sum(dim=(1, 2))[:, None, None]  # (B, h, w)
    outside = mask_weights[:, 1] * (mask == 0).sum(dim=(1, 2))[:, None, None]
    # Divided by what a full mask gives, because a cell at the border gathers from fewer pixels.
    return iou(normalize(inside / (inside + outside)), mask, tau)
