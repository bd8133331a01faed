"""Attention map and segmentation mask -> alpha, beta and the CAMAL loss (Eq. 1, 2).

Eq. 1 is linear in the attention map and so is bilinear upsampling. A mask can therefore be projected once to
two weight maps at feature-map resolution, after which the loss needs neither the mask nor any upsampling.
"""

from collections import Counter

import torch
from torch import Tensor

from camal_rl.attention import at_least_float32, upsample

EMPTY_MASK: tuple[str, ...] = ("ignore", "suppress")
METHODS: tuple[str, ...] = ("camal", "suppress")


def alpha_beta(heat: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention inside and outside the mask, Eq. 1: two tensors of shape (B,), in [0, 1].

    Args:
        heat: (B, H, W) in [0, 1], at the mask's resolution.
        mask: (B, H, W), bool, or of any dtype with values in [0, 1].

    A mean over no pixels is defined as 0 with zero gradient: alpha of an empty mask, beta of a full one.

    Raises:
        ValueError: shapes that do not fit, or a mask that is none, see `check_mask`.
    """
    if heat.dim() != 3 or heat.shape != mask.shape:
        raise ValueError(
            "heat and mask must have the same shape (B, H, W), "
            f"got {tuple(heat.shape)} and {tuple(mask.shape)}"
        )
    check_mask(mask)
    inside = mask.to(at_least_float32(heat).dtype)  # float16 can't hold the number of pixels of a mask
    outside = 1 - inside
    alpha, beta = (
        (heat * region).sum(dim=(1, 2)) / region.sum(dim=(1, 2)).clamp(min=1) for region in (inside, outside)
    )
    return alpha, beta


def camal_loss(heat: Tensor, mask: Tensor, *, empty_mask: str = "ignore", method: str = "camal") -> Tensor:
    """L_CAMAL of Eq. 2 without lambda: a scalar in [-1, 1], the mean of beta - alpha.

    Args:
        heat: (B, h, w) in [0, 1]; at another resolution than the mask's it is upsampled to it bilinearly.
        mask: (B, H, W), bool, or of any dtype with values in [0, 1].
        empty_mask: what a sample whose mask is empty, so that alpha is undefined, contributes. "ignore":
            nothing, and the mean is over the other samples; if there are none the loss is 0 with zero
            gradient. "suppress": its beta, and the mean is over all samples.
        method: "camal", or "suppress" for the mean of beta alone (earlier regularisers, Table 4).

    A full mask has no outside, so its sample contributes -alpha to "camal" and 0 to "suppress".

    Raises:
        ValueError: shapes that do not fit, or a mask that is none, see `check_mask`.
    """
    if mask.dim() == 4 and mask.shape[1] == 1:
        raise ValueError(f"mask must be (B, H, W), got {tuple(mask.shape)}: squeeze it, mask.squeeze(1)")
    if heat.dim() != 3 or mask.dim() != 3 or len(heat) != len(mask):
        raise ValueError(
            "heat (B, h, w) and mask (B, H, W) must be of one batch, "
            f"got {tuple(heat.shape)} and {tuple(mask.shape)}"
        )
    if heat.shape != mask.shape:
        heat = upsample(at_least_float32(heat), (mask.shape[1], mask.shape[2]))  # (B, H, W)
    alpha, beta = alpha_beta(heat, mask)
    return _mean_loss(alpha, beta, (mask != 0).flatten(1).any(dim=1), empty_mask, method)


def projected_alpha_beta(heat: Tensor, mask_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention inside and outside the mask, Eq. 1, from projected masks: two tensors of shape (B,).

    Args:
        heat: (B, h, w) in [0, 1].
        mask_weights: (B, 2, h, w), see `masks.mask_weights`.
    """
    if heat.dim() != 3 or mask_weights.shape != (heat.shape[0], 2, *heat.shape[1:]):
        raise ValueError(
            "heat (B, h, w) and mask_weights (B, 2, h, w) do not fit, "
            f"got {tuple(heat.shape)} and {tuple(mask_weights.shape)}"
        )
    alpha, beta = (heat.unsqueeze(1) * mask_weights).sum(dim=(2, 3)).unbind(dim=1)
    return alpha, beta


def projected_loss(
    heat: Tensor, mask_weights: Tensor, *, empty_mask: str = "ignore", method: str = "camal"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`camal_loss` from projected masks: the same numbers without upsampling.

    Args:
        heat: (B, h, w) in [0, 1].
        mask_weights: (B, 2, h, w), see `masks.mask_weights`.
        empty_mask, method: as in `camal_loss`.

    Returns:
        The loss (scalar), alpha (B,), beta (B,), all part of the graph, and has_target (B,) bool.
    """
    alpha, beta = projected_alpha_beta(heat, mask_weights)
    has_target = (mask_weights[:, 0] > 0).flatten(1).any(dim=1)
    return _mean_loss(alpha, beta, has_target, empty_mask, method), alpha, beta, has_target


def check_mask(mask: Tensor) -> None:
    """Refuse what is no mask, such as one of 0 and 255, or of labels.

    A mask of bool needs no look. On an accelerator, where a look would wait for it, the first ten masks of a
    type are looked at, because such a mistake is in every batch; an assertion there that waits for nothing
    would end the process without naming the cause.

    Raises:
        ValueError: values outside [0, 1], or NaN.
    """
    if mask.dtype == torch.bool or mask.numel() == 0:
        return
    if mask.device.type != "cpu":
        _LOOKED_AT[mask.dtype] += 1
        if _LOOKED_AT[mask.dtype] > 10:
            return
    low, high = (float(end) for end in torch.aminmax(mask.detach()))
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(
            f"mask must have values in [0, 1], got {mask.dtype} from {low:g} to {high:g}: of a mask of 0 and "
            "255 take mask > 127, of one of labels mask == label"
        )


_LOOKED_AT: Counter[torch.dtype] = Counter()


def _mean_loss(alpha: Tensor, beta: Tensor, has_target: Tensor, empty_mask: str, method: str) -> Tensor:
    """Average as `camal_loss` says: alpha, beta, has_target (B,) -> scalar."""
    if empty_mask not in EMPTY_MASK:
        raise ValueError(f"unknown empty_mask {empty_mask!r}; valid: {', '.join(EMPTY_MASK)}")
    if method not in METHODS:
        raise ValueError(f"unknown loss method {method!r}; valid: {', '.join(METHODS)}")
    losses = beta - alpha if method == "camal" else beta  # (B,)
    counted = has_target if empty_mask == "ignore" else torch.ones_like(has_target)
    return (losses * counted).sum() / counted.sum().clamp(min=1)
