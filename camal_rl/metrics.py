"""Attention -> how well it agrees with a mask (alignment) and how much the network heeds it (faithfulness).

Alignment is the paper's Eq. 8 and measures beside it; faithfulness is removal and insertion of the pixels
attended to most, Sec. 4.2. Plain functions on arrays: a batch of frames in, numbers for each frame out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

TAU = 0.7
"""Threshold above which a pixel counts as attended to (paper, Appendix C)."""

TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the sweep, which shows how much of an IoU is owed to `TAU`."""

LEVELS = 65535
"""`roc_auc` rounds attention to multiples of 1 / LEVELS, since whole numbers of 16 bits are sorted fast."""


# ------------------------------------------------------------------------------------------------------------
# Alignment: attention against a mask


def upsample(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample (B, h, w) to float32 (B, H, W) bilinearly, align_corners=False; `size` is (H, W)."""
    pixels = np.empty((len(heat), *size), np.float32)
    for index, frame in enumerate(heat):
        pixels[index] = _upsample(frame, size)
    return pixels


def iou(heat: np.ndarray, mask: np.ndarray, tau: float = TAU) -> np.ndarray:
    """Return intersection over union of the pixels with heat above `tau` and the mask (Eq. 8), float64 (B,).

    NaN where both are empty: there was nothing to find, and nothing was found.

    Args:
        heat: (B, h, w) in [0, 1]; upsampled bilinearly to the mask's resolution.
        mask: uint8 or bool (B, H, W) of zeros and ones.
    """
    return iou_sweep(heat, mask, (tau,))[:, 0]


def iou_sweep(heat: np.ndarray, mask: np.ndarray, taus: Sequence[float] | np.ndarray = TAUS) -> np.ndarray:
    """Return `iou` at each threshold, float64 (B, len(taus)).

    A network whose attention is merely spread wider or narrower gains at one threshold and loses at another;
    its `area` over `taus` does not depend on which one was chosen.
    """
    scores = [_iou_sweep(*frame, taus) for frame in _frames(heat, mask)]
    return np.array(scores, np.float64).reshape(len(mask), len(taus))


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return 1 where the most attended pixel lies in the mask, else 0 (Zhang et al. 2018), float64 (B,).

    Where several pixels share the maximum it is their share inside, the chance that one drawn from them hits.
    A dead map (all zero) points nowhere: 0. NaN where the mask is empty. Arguments as for `iou`.
    """
    return np.array([_pointing_game(*frame) for frame in _frames(heat, mask)], np.float64)


def relevance_mass(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the share of attention in the mask (relevance mass accuracy, Arras et al. 2022), float64 (B,).

    A uniform map scores the mask's share of the frame, a dead one 0. NaN where the mask is empty. Arguments
    as for `iou`.
    """
    return np.array([_relevance_mass(*frame) for frame in _frames(heat, mask)], np.float64)


def roc_auc(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of attention as a score of the mask's pixels, float64 (B,).

    The probability that a pixel of the mask is attended to more than one outside it, a tie counting half
    (Mann-Whitney): 0.5 for a uniform or dead map. It sees the order of pixels only, neither a threshold nor
    how strongly the map peaks. NaN where the mask is empty or full. Arguments as for `iou`.

    Heat is first rounded to multiples of 1 / LEVELS. That can turn a pair of pixels nearer than 1 / LEVELS
    into a tie but never reverses one, so the result is off by at most half the share of (inside, outside)
    pairs that such a tie joins; it is exact for heat that consists of such multiples.
    """
    return np.array([_roc_auc(*frame) for frame in _frames(heat, mask)], np.float64)


def alignment(heat: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return all measures in one pass: by name, what the function of this name returns."""
    sweep = np.empty((len(mask), len(TAUS)))
    rest = np.empty((3, len(mask)))
    for index, frame in enumerate(_frames(heat, mask)):
        sweep[index] = _iou_sweep(*frame, TAUS)
        rest[:, index] = _pointing_game(*frame), _relevance_mass(*frame), _roc_auc(*frame)
    names = ("pointing_game", "relevance_mass", "roc_auc")
    return {"iou": sweep[:, TAUS.index(TAU)], "iou_sweep": sweep, **dict(zip(names, rest, strict=True))}


def iou_mask(mask_weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the IoU that the mask itself reaches at the attention map's resolution, float64 (B,).

    A 7 x 7 map can't outline a monster of 20 pixels, however well it attends: read every IoU beside this.

    Args:
        mask_weights: (B, 2, h, w), the masks projected to the map's resolution by `masks.mask_weights`.
        mask: uint8 (B, H, W) of zeros and ones, none of them empty.
    """
    covered = np.array([cv2.countNonZero(frame) for frame in mask]).reshape(-1, 1, 1)  # (B, 1, 1)
    inside = mask_weights[:, 0] * covered  # (B, h, w)
    outside = mask_weights[:, 1] * (mask.shape[1] * mask.shape[2] - covered)
    # Divided by what a full mask gives, because a cell at the border gathers from fewer pixels.
    total = inside + outside
    share = inside / np.where(total > 0, total, 1)  # no pixel sees some cells of a map finer than the mask
    low, high = share.min(axis=(1, 2), keepdims=True), share.max(axis=(1, 2), keepdims=True)
    span = np.where(high > low, high - low, 1)
    return iou(((share - low) / span).astype(np.float32), mask)


def rank_correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of the rows of two arrays (B, n), float64 (B,).

    Equal values share the mean of their ranks. NaN where a row is constant or holds a NaN.
    """
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(f"both arrays must have the same shape (B, n), got {left.shape} and {right.shape}")
    if not left.size:
        return np.full(len(left), np.nan)
    from scipy.stats import rankdata  # slow to import

    # Twice as far from their mean they are integers, so that sums of products are exact.
    return correlation(*(2 * rankdata(rows, axis=1) - (rows.shape[1] + 1) for rows in (left, right)))


def correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of the rows of two arrays (B, n), float64 (B,); NaN as above."""
    dx, dy = (rows - rows.mean(axis=1, keepdims=True) for rows in (left, right))
    varies = (np.ptp(left, axis=1) > 0) & (np.ptp(right, axis=1) > 0)
    scale = np.sqrt((dx**2).sum(axis=1) * (dy**2).sum(axis=1))
    return np.where(varies, (dx * dy).sum(axis=1) / np.where(varies, scale, 1), np.nan)


def area(values: np.ndarray, positions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the mean height of curves: their area by the trapezoidal rule, over its span, float64 (...).

    Args:
        values: (..., S), the curves along the last axis.
        positions: (S,), strictly ascending, at least two.
    """
    values = np.asarray(values, np.float64)
    steps = np.diff(np.asarray(positions, np.float64))
    if steps.ndim != 1 or not len(steps) or values.shape[-1:] != (len(steps) + 1,) or not (steps > 0).all():
        raise ValueError(
            "positions must be strictly ascending, (S,) with S at least 2, for values (..., S), "
            f"got shapes {np.shape(positions)} and {values.shape}"
        )
    heights = (values[..., 1:] + values[..., :-1]) / 2
    return np.asarray((heights * (steps / steps.sum())).sum(axis=-1))


# ------------------------------------------------------------------------------------------------------------
# Faithfulness: what happens to the network's output when what it attends to is taken away


def pixel_order(importance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of pixels from the most to the least important, int32 (B, H * W).

    Pixels of equal importance come in random order, so that a dead map is a random order and not a scan of
    the frame from its top.

    Args:
        importance: floating point (B, H, W), of either sign, without NaN.
        rng: draws the same amount whatever the importance.
    """
    if importance.ndim != 3 or not np.issubdtype(importance.dtype, np.floating):
        raise ValueError(
            "importance must be floating point of shape (B, H, W), "
            f"got {importance.dtype} of shape {importance.shape}"
        )
    flat = importance.reshape(len(importance), -1)
    order = np.empty(flat.shape, np.int32)
    for index, frame in enumerate(flat):
        shuffled = rng.permutation(len(frame))
        # Stable, because the order in which another sort leaves equals differs between processors.
        order[index] = shuffled[np.argsort(-frame[shuffled], kind="stable")]
    return order


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blur each channel by a Gaussian of `sigma` pixels, reflected at the border: uint8 (B, C, H, W).

    As a reference that replaces removed pixels it takes away what is local but stays close to what the
    network was trained on, while a black patch is itself something to see.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 of shape (B, C, H, W), got {images.dtype} of shape {images.shape}"
        )
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0 pixels, got {sigma}")
    blurred = np.empty(images.shape, np.uint8)
    for index in np.ndindex(images.shape[:2]):
        blurred[index] = cv2.GaussianBlur(images[index], (0, 0), sigma)
    return blurred


def perturbation_curves(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    reference: np.ndarray,
    order: np.ndarray,
    shares: Sequence[float] | np.ndarray,
    channels: slice = slice(None),
    batch_size: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict while images lose, or regain, their most important pixels (paper, Sec. 4.2).

    Removal shows the images with the first pixels of `order` replaced by those of `reference`, insertion the
    reference with the first pixels of `order` replaced by those of the images. Removal at 0 and insertion at
    1 are the images, removal at 1 and insertion at 0 the reference; each is predicted once.

    Args:
        predict: (b, C, H, W) of the images' dtype -> (b, n), with b at most `batch_size`. It must neither
            change nor keep its argument, which is altered in place between calls.
        images, reference: (B, C, H, W) of one dtype; left as they are.
        order: integers (B, H * W), each row a permutation, most important first: from `pixel_order`.
        shares: (S,) ascending in [0, 1]; round(share * H * W) pixels are replaced.
        channels: those that are replaced; the others are always the images' own. `slice(-1, None)` of a
            stack of frames is the newest one.
        batch_size: images predicted at once.

    Returns:
        removal, insertion: float64 (S, B, n).
    """
    pixels = int(np.prod(images.shape[2:]))
    if reference.shape != images.shape or reference.dtype != images.dtype:
        raise ValueError(
            f"reference must be like the images, {images.dtype} of shape {images.shape}, "
            f"got {reference.dtype} of shape {reference.shape}"
        )
    if order.shape != (len(images), pixels):
        raise ValueError(f"order must have shape {(len(images), pixels)}, got {order.shape}")
    if not (np.min(shares) >= 0 and np.max(shares) <= 1 and (np.diff(shares) >= 0).all()):
        raise ValueError(f"shares must ascend within [0, 1], got {list(shares)}")
    # Shares that round to the same number of pixels show the same images.
    counts, positions = np.unique(np.rint(np.asarray(shares) * pixels).astype(np.intp), return_inverse=True)
    removal, insertion = [], []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        hidden = images[batch].copy()
        hidden[:, channels] = reference[batch][:, channels]
        removed = _curve(predict, images[batch], hidden, order[batch], counts, channels, {})
        ends = {pixels - count: removed[step] for step, count in enumerate(counts) if count in (0, pixels)}
        removal.append(removed)
        insertion.append(_curve(predict, hidden, images[batch], order[batch], counts, channels, ends))
    return np.concatenate(removal, axis=1)[positions], np.concatenate(insertion, axis=1)[positions]


# ------------------------------------------------------------------------------------------------------------
# One frame at a time: pixels is float32 (H, W), inside the values of those that lie in the mask, (N,)


def _frames(heat: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each frame's pixels and those inside its mask: a frame fits into the cache, a batch does not."""
    if heat.ndim != 3 or mask.ndim != 3 or len(heat) != len(mask):
        raise ValueError(
            f"heat (B, h, w) and mask (B, H, W) must be of one batch, got {heat.shape} and {mask.shape}"
        )
    if mask.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"mask must be uint8 or bool, got {mask.dtype}")
    if np.ma.is_masked(heat) or np.ma.is_masked(mask):
        raise ValueError("values of a masked array that are hidden would count: fill them, or leave them out")
    if heat.size and not (heat.min() >= 0 and heat.max() <= 1):
        raise ValueError(
            f"heat must lie in [0, 1], got values from {heat.min()} to {heat.max()}: normalize each map first"
        )
    for small, target in zip(heat, mask.view(np.uint8), strict=True):
        pixels = _upsample(small, target.shape)
        x, y, width, height = cv2.boundingRect(target)
        box = (slice(y, y + height), slice(x, x + width))
        target = target[box]
        if target.max(initial=0) > 1:
            raise ValueError(
                f"mask must hold 0 and 1 only, got values up to {target.max()}: "
                "pass mask != 0, or compare a label image with the labels that are targets"
            )
        yield pixels, pixels[box][target.view(np.bool_)]


def _upsample(heat: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(cv2.resize(np.asarray(heat, np.float32), size[::-1], interpolation=cv2.INTER_LINEAR))


def _iou_sweep(pixels: np.ndarray, inside: np.ndarray, taus: Sequence[float] | np.ndarray) -> list[float]:
    scores = []
    for tau in map(float, taus):  # compared as float32: a NumPy scalar would turn all pixels into float64
        intersection = np.count_nonzero(inside > tau)
        union = len(inside) + np.count_nonzero(pixels > tau) - intersection
        scores.append(intersection / union if union else np.nan)
    return scores


def _pointing_game(pixels: np.ndarray, inside: np.ndarray) -> float:
    if not len(inside):
        return np.nan
    highest = pixels.max()
    if highest <= 0:
        return 0.0
    return np.count_nonzero(inside == highest) / np.count_nonzero(pixels == highest)


def _relevance_mass(pixels: np.ndarray, inside: np.ndarray) -> float:
    if not len(inside):
        return np.nan
    total = cv2.sumElems(pixels)[0]  # in float64; before OpenCV 5 only to 8 digits
    # At most 1 also where the two sums, taken in a different order, are rounded differently.
    return min(cv2.sumElems(inside)[0] / total, 1.0) if total > 0 else 0.0


def _roc_auc(pixels: np.ndarray, inside: np.ndarray) -> float:
    positives, negatives = len(inside), pixels.size - len(inside)
    if not positives or not negatives:
        return np.nan
    ranked, attended = (np.sort(_levels(part), axis=None, kind="stable") for part in (pixels, inside))
    # Twice the number of pixels that those inside lie above, a tie counting half. All but positives**2 of
    # them lie outside.
    above = sum(int(ranked.searchsorted(attended, side).sum()) for side in ("left", "right"))
    return (above - positives**2) / (2 * positives * negatives)


def _levels(values: np.ndarray) -> np.ndarray:
    """Return the nearest of 0 ... LEVELS to values in [0, 1], uint16 of their shape."""
    scaled: np.ndarray = values * np.float32(LEVELS) + np.float32(0.5)
    return scaled.astype(np.uint16)


# ------------------------------------------------------------------------------------------------------------
# One batch of removal or insertion


def _curve(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    source: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    channels: slice,
    known: dict[int, np.ndarray],
) -> np.ndarray:
    """Return predictions on the images after each of `counts` pixels came from `source`, float64 (S, b, n).

    `known` holds those that were made before, by their count.
    """
    shown = images.copy()
    # (b, c, H * W), the first a view of what is shown
    target, donor = (array.reshape(*array.shape[:2], -1)[:, channels] for array in (shown, source))
    predictions, done = dict(known), 0
    for count in counts:
        if count in known:
            continue
        changed = order[:, done:count].astype(np.intp)  # (b, m)
        # Channel by channel, because indexing along one axis is twice as fast as along the last of three.
        for ours, theirs, indices in zip(target, donor, changed, strict=True):
            for channel, replacement in zip(ours, theirs, strict=True):
                channel[indices] = replacement[indices]
        # A copy, because `predict` may return the same array every time.
        predictions[count] = np.array(predict(shown), np.float64)
        done = count
    return np.stack([predictions[count] for count in counts])
