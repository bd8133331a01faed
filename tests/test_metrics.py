"""Metrics against cases counted by hand and against torch's own interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from camal_rl.camal import mask_weights
from camal_rl.metrics import TAU, iou, iou_ceiling


def boxes(*corners: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A mask for each (top, left, height, width)."""
    masks = np.zeros((len(corners), *size), np.uint8)
    for mask, (top, left, height, width) in zip(masks, corners, strict=True):
        mask[top : top + height, left : left + width] = 1
    return masks


def ceiling(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return iou_ceiling(mask_weights(masks, size), masks)


def test_threshold_is_the_papers() -> None:
    assert TAU == 0.7


def test_iou_counts_pixels_above_the_threshold() -> None:
    heat = np.array([[[0.9, 0.8, 0.7], [0.2, 0.71, 0.0]]], np.float32)  # three above 0.7; 0.7 itself is not
    mask = np.array([[[1, 0, 1], [0, 1, 1]]], np.uint8)
    assert iou(heat, mask).tolist() == [2 / 5]  # both: 2; in one of them: 3 + 4 - 2
    assert iou(heat, mask, tau=0.75).tolist() == [1 / 5]
    assert iou(heat, mask, tau=0.1).tolist() == [3 / 6]


@pytest.mark.parametrize(
    ("heat", "mask", "score"),
    [
        ([[0, 1], [0, 1]], [[0, 1], [0, 1]], 1.0),  # perfect
        ([[1, 0], [1, 0]], [[0, 1], [0, 1]], 0.0),  # perfectly wrong
        ([[1, 1], [1, 1]], [[0, 1], [0, 0]], 0.25),  # everywhere: the target's share of the frame
        ([[0, 0], [0, 0]], [[0, 1], [0, 0]], 0.0),  # dead map
        ([[1, 0], [0, 0]], [[0, 0], [0, 0]], 0.0),  # nothing to find, something found
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], None),  # nothing to find, nothing found
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]], 1.0),
        ([[1, 1], [1, 0]], [[1, 1], [1, 1]], 0.75),
    ],
)
def test_iou_of_plain_cases(heat: list[list[int]], mask: list[list[int]], score: float | None) -> None:
    (result,) = iou(np.array([heat], np.float32), np.array([mask], np.uint8))
    assert np.isnan(result) if score is None else result == score


def test_iou_is_that_of_torchs_bilinear_upsampling() -> None:
    rng = np.random.default_rng(0)
    for size in ((7, 7), (26, 36), (1, 1), (60, 80)):
        heat = rng.random((6, *size), np.float32)
        masks = (rng.random((6, 60, 80)) < rng.random((6, 1, 1))).astype(np.uint8)
        pixels = F.interpolate(torch.from_numpy(heat)[None], size=(60, 80), mode="bilinear")[0].numpy()
        near = (abs(pixels - TAU) < 1e-5).sum(axis=(1, 2))  # rounding may decide these either way
        attended = pixels > TAU
        both = (attended & (masks > 0)).sum(axis=(1, 2))
        either = (attended | (masks > 0)).sum(axis=(1, 2))
        scores = iou(heat, masks)
        assert scores.dtype == np.float64
        np.testing.assert_array_less(abs(scores - both / either), (near + 1e-9) / either)


def test_iou_refuses_a_batch_of_another_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        iou(np.zeros((1, 7, 7), np.float32), np.zeros((2, 60, 80), np.uint8))


def test_a_mask_at_the_maps_own_resolution_has_ceiling_one() -> None:
    masks = (np.random.default_rng(0).random((4, 7, 9)) < 0.3).astype(np.uint8)
    np.testing.assert_array_equal(ceiling(masks, (7, 9)), 1)


def test_ceiling_grows_with_the_maps_resolution() -> None:
    masks = boxes((100, 150, 20, 16), (0, 0, 60, 80), (130, 20, 50, 30))
    scores = np.array([ceiling(masks, size) for size in ((7, 7), (26, 36), (60, 80), (240, 320))])
    assert (np.diff(scores, axis=0) > 0).all()
    np.testing.assert_array_equal(scores[-1], 1)


def test_a_coarse_map_cannot_outline_a_small_target() -> None:
    (score,) = ceiling(boxes((100, 150, 20, 16)), (7, 7))
    assert 0 < score < 0.5


def test_ceiling_is_the_iou_of_the_share_of_target_in_each_cell() -> None:
    masks = boxes((60, 80, 60, 80))  # cells (2, 2) to (3, 3) of 8 x 8
    share = torch.from_numpy(masks).double()[None]
    ones = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    upsampled = F.interpolate(ones, size=(240, 320), mode="bilinear")
    (inside,) = torch.autograd.grad((upsampled * share).sum(), ones, retain_graph=True)
    (whole,) = torch.autograd.grad(upsampled.sum(), ones)
    shown = (inside / whole)[0].numpy()
    shown = ((shown - shown.min()) / (shown.max() - shown.min())).astype(np.float32)
    np.testing.assert_allclose(ceiling(masks, (8, 8)), iou(shown, masks), rtol=1e-3)


def test_a_full_mask_has_no_ceiling_that_a_normalised_map_could_reach() -> None:
    assert ceiling(np.ones((1, 240, 320), np.uint8), (7, 7)).tolist() == [0]
