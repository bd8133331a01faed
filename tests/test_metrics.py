"""Metrics against cases counted by hand, against other libraries' and against slow and plain versions."""

import warnings
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from camal_rl.masks import mask_weights
from camal_rl.metrics import (
    LEVELS,
    TAU,
    TAUS,
    alignment,
    area,
    blur,
    iou,
    iou_mask,
    iou_sweep,
    perturbation_curves,
    pixel_order,
    pointing_game,
    rank_correlation,
    relevance_mass,
    roc_auc,
    upsample,
)

ALIGNMENT = {
    "iou": iou,
    "iou_sweep": iou_sweep,
    "pointing_game": pointing_game,
    "relevance_mass": relevance_mass,
    "roc_auc": roc_auc,
}
NAN = float("nan")


def boxes(*corners: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A mask for each (top, left, height, width)."""
    masks = np.zeros((len(corners), *size), np.uint8)
    for mask, (top, left, height, width) in zip(masks, corners, strict=True):
        mask[top : top + height, left : left + width] = 1
    return masks


def single(rows: list[list[float]]) -> np.ndarray:
    """One frame of attention, (1, H, W)."""
    return np.array([rows], np.float32)


def single_mask(rows: list[list[int]]) -> np.ndarray:
    return np.array([rows], np.uint8)


def blobs(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Masks of every density, none empty and none full, (count, H, W)."""
    masks = (rng.random((count, *size)) < rng.random((count, 1, 1))).astype(np.uint8)
    masks[:, 0, 0], masks[:, -1, -1] = 1, 0
    return masks


def mann_whitney(heat: np.ndarray, mask: np.ndarray) -> float:
    """The share of (inside, outside) pairs that the inside wins, ties half, of one frame."""
    inside, outside = heat[mask == 1].astype(np.float64), heat[mask == 0].astype(np.float64)
    won = 2 * (inside[:, None] > outside).sum() + (inside[:, None] == outside).sum()
    return float(won / (2 * len(inside) * len(outside)))


def iou_of_mask(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return iou_mask(mask_weights(masks, size), masks)


def test_no_frames_have_no_iou_of_masks() -> None:
    assert iou_of_mask(np.zeros((0, 12, 16), np.uint8), (3, 4)).shape == (0,)


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


def test_a_mask_at_the_maps_own_resolution_has_iou_one() -> None:
    masks = (np.random.default_rng(0).random((4, 7, 9)) < 0.3).astype(np.uint8)
    np.testing.assert_array_equal(iou_of_mask(masks, (7, 9)), 1)


def test_iou_of_the_mask_grows_with_the_maps_resolution() -> None:
    masks = boxes((100, 150, 20, 16), (0, 0, 60, 80), (130, 20, 50, 30))
    scores = np.array([iou_of_mask(masks, size) for size in ((7, 7), (26, 36), (60, 80), (240, 320))])
    assert (np.diff(scores, axis=0) > 0).all()
    np.testing.assert_array_equal(scores[-1], 1)


def test_a_coarse_map_cannot_outline_a_small_target() -> None:
    (score,) = iou_of_mask(boxes((100, 150, 20, 16)), (7, 7))
    assert 0 < score < 0.5


def test_iou_of_the_mask_is_that_of_the_share_of_target_in_each_cell() -> None:
    masks = boxes((60, 80, 60, 80))  # cells (2, 2) to (3, 3) of 8 x 8
    share = torch.from_numpy(masks).double()[None]
    ones = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    upsampled = F.interpolate(ones, size=(240, 320), mode="bilinear")
    (inside,) = torch.autograd.grad((upsampled * share).sum(), ones, retain_graph=True)
    (whole,) = torch.autograd.grad(upsampled.sum(), ones)
    shown = (inside / whole)[0].numpy()
    shown = ((shown - shown.min()) / (shown.max() - shown.min())).astype(np.float32)
    np.testing.assert_allclose(iou_of_mask(masks, (8, 8)), iou(shown, masks), rtol=1e-3)


def test_a_full_mask_has_iou_zero_because_no_normalized_map_shows_it() -> None:
    assert iou_of_mask(np.ones((1, 240, 320), np.uint8), (7, 7)).tolist() == [0]


# ------------------------------------------------------------------------------------------------------------
# The other measures of alignment


TARGET = [[1, 1, 0, 0], [0, 0, 0, 0]]  # a quarter of the frame
NOTHING, EVERYTHING = [[0] * 4] * 2, [[1] * 4] * 2
FAINT = [[0.5] * 4] * 2


@pytest.mark.parametrize(
    ("heat", "mask", "overlap", "sweep", "pointing", "mass", "auc"),
    [
        (TARGET, TARGET, 1, [1] * 9, 1, 1, 1),  # the mask itself
        ([[0, 0, 1, 1], [1, 1, 1, 1]], TARGET, 0, [0] * 9, 0, 0, 0),  # all but the mask
        (EVERYTHING, TARGET, 0.25, [0.25] * 9, 0.25, 0.25, 0.5),  # uniform: the mask's share of the frame
        (FAINT, TARGET, 0, [0.25] * 4 + [0] * 5, 0.25, 0.25, 0.5),
        (NOTHING, TARGET, 0, [0] * 9, 0, 0, 0.5),  # dead
        (TARGET, NOTHING, 0, [0] * 9, NAN, NAN, NAN),  # nothing to find, something found
        (FAINT, NOTHING, NAN, [0] * 4 + [NAN] * 5, NAN, NAN, NAN),
        (NOTHING, NOTHING, NAN, [NAN] * 9, NAN, NAN, NAN),  # nothing to find, nothing found
        (TARGET, EVERYTHING, 0.25, [0.25] * 9, 1, 1, NAN),  # no pixel could be wrong
        (EVERYTHING, EVERYTHING, 1, [1] * 9, 1, 1, NAN),
        (NOTHING, EVERYTHING, 0, [0] * 9, 0, 0, NAN),
    ],
)
def test_special_cases_of_every_measure(
    heat: list[list[float]],
    mask: list[list[int]],
    overlap: float,
    sweep: list[float],
    pointing: float,
    mass: float,
    auc: float,
) -> None:
    scores = alignment(single(heat), single_mask(mask))
    np.testing.assert_array_equal(scores["iou"], [overlap])
    np.testing.assert_array_equal(scores["iou_sweep"], [sweep])
    np.testing.assert_array_equal(scores["pointing_game"], [pointing])
    np.testing.assert_array_equal(scores["relevance_mass"], [mass])
    np.testing.assert_array_equal(scores["roc_auc"], [auc])


def test_sweep_counts_pixels_above_each_threshold() -> None:
    heat = single([[0.95, 0.65, 0.35], [0.05, 0.75, 0.15]])
    mask = single_mask([[1, 1, 0], [0, 0, 0]])
    assert iou_sweep(heat, mask).tolist() == [[2 / 5, 2 / 4, 2 / 4, 2 / 3, 2 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2]]
    assert iou_sweep(heat, mask, (0.0, 0.5)).tolist() == [[2 / 6, 2 / 3]]


def test_sweep_holds_the_iou_and_takes_thresholds_of_any_kind() -> None:
    rng = np.random.default_rng(1)
    heat = np.round(rng.random((8, 12, 16), np.float32), 1)  # many a pixel lies on a threshold
    masks = blobs(rng, 8, (12, 16))
    sweep = iou_sweep(heat, masks)
    np.testing.assert_array_equal(sweep[:, TAUS.index(TAU)], iou(heat, masks))
    np.testing.assert_array_equal(sweep, np.stack([iou(heat, masks, tau) for tau in TAUS], axis=1))
    np.testing.assert_array_equal(sweep, iou_sweep(heat, masks, np.array(TAUS)))


@pytest.mark.parametrize(
    ("heat", "score"),
    [
        ([[0.2, 0.9, 0.1], [0.1, 0.3, 0.2]], 1),
        ([[0.2, 0.1, 0.1], [0.9, 0.3, 0.2]], 0),
        ([[0.2, 0.9, 0.1], [0.9, 0.3, 0.2]], 1 / 2),
        ([[0.9, 0.9, 0.9], [0.1, 0.3, 0.2]], 2 / 3),
    ],
)
def test_pointing_game_asks_where_the_maximum_is(heat: list[list[float]], score: float) -> None:
    assert pointing_game(single(heat), single_mask([[1, 1, 0], [0, 0, 0]])).tolist() == [score]


def test_relevance_mass_is_the_share_of_attention_inside() -> None:
    heat = single([[0.5, 0.25, 0.125], [1, 0, 0.125]])
    assert relevance_mass(heat, single_mask([[1, 1, 0], [0, 1, 0]])).tolist() == [0.75 / 2]


def test_relevance_mass_of_attention_that_is_all_inside_is_never_above_one() -> None:
    rng = np.random.default_rng(12)
    masks = blobs(rng, 60, (24, 32))
    heat = masks * (10 ** rng.uniform(-12, 0, masks.shape)).astype(np.float32)  # sums that have to be rounded
    scores = relevance_mass(heat, masks)
    assert scores.max() == 1
    np.testing.assert_allclose(scores, 1, rtol=1e-12)


def test_roc_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    heat = single([[0.8, 0.4, 0.4], [0.2, 0.6, 0.0]])
    mask = single_mask([[1, 1, 0], [0, 0, 0]])
    assert roc_auc(heat, mask).tolist() == [(4 + 2.5) / 8]  # 0.4 beats two, ties with one, loses to one


def test_roc_auc_is_exact_for_levels() -> None:
    rng = np.random.default_rng(2)
    masks = blobs(rng, 6, (24, 32))
    for highest in (3, 50, LEVELS):
        levels = rng.integers(0, highest + 1, masks.shape)
        levels[0] = 0  # a dead map
        heat = (levels / LEVELS).astype(np.float32)
        expected = [mann_whitney(*frame) for frame in zip(levels, masks, strict=True)]
        assert roc_auc(heat, masks).tolist() == expected


def test_every_level_is_told_from_its_neighbours() -> None:
    levels = np.arange(LEVELS + 1).reshape(1, 256, 256)
    heat = (levels / LEVELS).astype(np.float32)
    odd = (levels % 2).astype(np.uint8)
    half = 2**15
    expected = half * (half + 1) / 2 / half**2  # the k-th odd level lies above k even ones
    assert roc_auc(heat, odd).tolist() == [expected]
    assert roc_auc(np.where(odd, np.nextafter(heat, np.float32(0)), heat), odd).tolist() == [expected]


def test_rounding_moves_roc_auc_by_half_the_ties_it_makes_at_most() -> None:
    rng = np.random.default_rng(3)
    masks = blobs(rng, 4, (24, 32))
    for spread in (0.7, 1e-3, 1e-4, 1e-6):
        heat = (0.3 + spread * rng.random(masks.shape)).astype(np.float32)
        rounded = np.rint(heat.astype(np.float64) * LEVELS).astype(int)
        for frame, levels, mask, score in zip(heat, rounded, masks, roc_auc(heat, masks), strict=True):
            tied = (levels[mask == 1][:, None] == levels[mask == 0]).mean()
            assert abs(score - mann_whitney(frame, mask)) <= tied / 2 + 1e-15


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_roc_auc_sees_the_order_of_pixels_only(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    masks = blobs(rng, 2, (5, 6))
    ranks = rng.integers(0, distinct, masks.shape)
    low, high = (np.sort(rng.choice(LEVELS + 1, distinct, replace=False)) / LEVELS for _ in range(2))
    scores = roc_auc(low[ranks], masks)
    np.testing.assert_array_equal(scores, roc_auc(high[ranks], masks))
    np.testing.assert_allclose(roc_auc(low[ranks], 1 - masks), 1 - scores, rtol=0, atol=1e-15)


def test_one_pass_gives_what_the_functions_give() -> None:
    rng = np.random.default_rng(4)
    heat = rng.random((5, 7, 7), np.float32)
    heat[0] = 0
    masks = boxes(
        (10, 20, 20, 16), (0, 0, 60, 80), (30, 20, 30, 30), (0, 0, 0, 0), (59, 79, 1, 1), size=(60, 80)
    )
    scores = alignment(heat, masks)
    assert scores.keys() == ALIGNMENT.keys()
    for name, function in ALIGNMENT.items():
        alone = function(heat, masks)
        assert alone.dtype == scores[name].dtype == np.float64
        assert alone.shape == ((5, 9) if name == "iou_sweep" else (5,))
        np.testing.assert_array_equal(scores[name], alone, err_msg=name)
        np.testing.assert_array_equal(function(upsample(heat, (60, 80)), masks.astype(bool)), alone)


def test_a_batch_of_nothing_has_no_scores() -> None:
    for name, scores in alignment(np.zeros((0, 7, 7), np.float32), np.zeros((0, 60, 80), np.uint8)).items():
        assert scores.shape == ((0, 9) if name == "iou_sweep" else (0,))


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([0.0, 1e-30, 0.3, 1.0]),
)
def test_every_score_is_in_zero_to_one_or_nan(
    seed: int, map_size: tuple[int, int], size: tuple[int, int], highest: float
) -> None:
    rng = np.random.default_rng(seed)
    heat = (highest * rng.random((3, *map_size)) * (rng.random((3, *map_size)) < 0.7)).astype(np.float32)
    masks = (rng.random((3, *size)) < rng.choice([0, 0.1, 0.5, 1], (3, 1, 1))).astype(np.uint8)
    covered = masks.mean(axis=(1, 2))
    scores = alignment(heat, masks)
    for name, values in scores.items():
        assert (np.isnan(values) | ((values >= 0) & (values <= 1))).all(), name
    for name in ("pointing_game", "relevance_mass"):
        np.testing.assert_array_equal(np.isnan(scores[name]), covered == 0)
    np.testing.assert_array_equal(np.isnan(scores["roc_auc"]), (covered == 0) | (covered == 1))
    assert (covered[np.isnan(scores["iou"])] == 0).all()


def test_upsampling_is_torchs_bilinear_interpolation() -> None:
    rng = np.random.default_rng(5)
    for size in ((7, 7), (26, 36), (1, 1), (60, 80), (3, 60)):
        heat = rng.random((3, *size), np.float32)
        exact = F.interpolate(torch.from_numpy(heat).double()[None], size=(60, 80), mode="bilinear")[
            0
        ].numpy()
        shown = upsample(heat, (60, 80))
        assert shown.dtype == np.float32
        # Neighbours differ by 1 at most: a pixel is off by no more than its position, which may be float32.
        np.testing.assert_allclose(shown, exact, rtol=0, atol=max(size) * 2.0**-23)
    np.testing.assert_array_equal(upsample(heat, heat.shape[1:]), heat)
    np.testing.assert_array_equal(upsample(heat.astype(np.float64), (60, 80)), shown)


def test_iou_and_roc_auc_are_those_of_torchmetrics() -> None:
    # Here, because it takes seconds that each worker of the suite would need.
    from torchmetrics.functional.classification import binary_auroc, binary_jaccard_index

    rng = np.random.default_rng(6)
    masks = blobs(rng, 6, (24, 32))
    heat = upsample(rng.random((6, 7, 7), np.float32), (24, 32))
    heat[0] = np.round(heat[0], 1)
    heat = (np.rint(heat * LEVELS) / LEVELS).astype(np.float32)
    sweep, auc = iou_sweep(heat, masks), roc_auc(heat, masks)
    for index, (frame, mask) in enumerate(
        zip(torch.from_numpy(heat), torch.from_numpy(masks).long(), strict=True)
    ):
        expected = [float(binary_jaccard_index(frame, mask, threshold=tau)) for tau in TAUS]
        np.testing.assert_allclose(sweep[index], expected, rtol=1e-6)
        np.testing.assert_allclose(auc[index], float(binary_auroc(frame, mask)), rtol=1e-6)


def quantus_scores(metric: str, heat: np.ndarray, mask: np.ndarray) -> list[float]:
    """A localisation metric of Quantus on attributions that are given, so that it needs no model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it and its dependencies deprecate is not ours to mend
        import quantus

        evaluate: Any = getattr(quantus, metric)(normalise=False, disable_warnings=True)
        scores: list[float] = evaluate(
            model=None,
            x_batch=np.zeros((len(heat), 1, *heat.shape[1:]), np.float32),
            y_batch=np.zeros(len(heat), np.int64),
            a_batch=heat[:, None],
            s_batch=mask[:, None].astype(bool),
        )
    return scores


def test_pointing_game_and_relevance_mass_are_those_of_quantus() -> None:
    rng = np.random.default_rng(7)
    masks = blobs(rng, 40, (24, 32))
    heat = rng.random(
        masks.shape, np.float32
    )  # its maximum is unique; of several, Quantus asks for one inside
    pointing = pointing_game(heat, masks)
    assert set(pointing) == {0, 1}
    np.testing.assert_array_equal(pointing, quantus_scores("PointingGame", heat, masks))
    heat = upsample(rng.random((40, 7, 7), np.float32), (24, 32)).astype(np.float64)
    expected = quantus_scores("RelevanceMassAccuracy", heat, masks)
    np.testing.assert_allclose(relevance_mass(heat, masks), expected, rtol=1e-12)


@pytest.mark.parametrize("function", [alignment, *ALIGNMENT.values()])
def test_measures_refuse_what_does_not_fit(function: Any) -> None:
    heat, mask = np.zeros((2, 7, 7), np.float32), np.zeros((2, 60, 80), np.uint8)
    for wrong in (mask[:1], mask[0], mask[None]):
        with pytest.raises(ValueError, match=r"heat \(B, h, w\) and mask \(B, H, W\) must be of one batch"):
            function(heat, wrong)
    with pytest.raises(ValueError, match="uint8 or bool, got float32"):
        function(heat, mask.astype(np.float32))
    mask[1, 30, 40] = 3
    with pytest.raises(ValueError, match="0 and 1 only, got values up to 3"):
        function(heat, mask)


@pytest.mark.parametrize("function", [alignment, *ALIGNMENT.values()])
@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf])
def test_measures_refuse_maps_that_are_not_normalized(function: Any, value: float) -> None:
    heat = np.zeros((1, 7, 7), np.float32)
    heat[0, 3, 3] = value
    with pytest.raises(ValueError, match=r"heat must lie in \[0, 1\]"):
        function(heat, np.ones((1, 60, 80), np.uint8))


def test_what_a_masked_array_hides_is_not_counted_in_silence() -> None:
    heat, mask = np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 2), np.uint8)
    hidden = np.ma.masked_equal(np.array([[[0, 1], [0, 0]]]), 1)
    for call in (
        *(lambda f=f: f(hidden.astype(np.float32), mask) for f in (alignment, *ALIGNMENT.values())),
        *(lambda f=f: f(heat, hidden.astype(np.uint8)) for f in (alignment, *ALIGNMENT.values())),
    ):
        with pytest.raises(ValueError, match="values of a masked array that are hidden would count"):
            call()


# ------------------------------------------------------------------------------------------------------------
# Areas and rank correlations


def test_area_is_the_mean_height_of_a_curve() -> None:
    assert area(np.array([[0.0, 1.0], [1.0, 1.0]]), (0, 1)).tolist() == [0.5, 1]
    assert area(np.array([0.0, 1.0, 0.0]), (0, 1, 4)).tolist() == 0.5  # a triangle, however wide its sides
    assert area(np.array([2, 4, 8]), (10, 20, 40)).tolist() == (3 * 10 + 6 * 20) / 30
    assert area(np.zeros((2, 3, 5)), np.linspace(0, 1, 5)).shape == (2, 3)


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers(-1000, 1000), st.lists(st.integers(-100, 100), min_size=2, max_size=30, unique=True))
def test_a_constant_curve_has_its_own_value_as_area(sevenths: int, positions: list[int]) -> None:
    curves = np.full((2, len(positions)), sevenths / 7)
    np.testing.assert_allclose(area(curves, sorted(positions)), sevenths / 7, rtol=1e-14)


def test_area_of_a_curve_with_a_gap_is_nan() -> None:
    assert np.isnan(area(np.array([0.1, NAN, 0.3]), (0, 1, 2)))


@pytest.mark.parametrize("positions", [(0, 1), (0, 1, 2, 3), (0, 2, 1), (0, 1, 1), (0,), ((0, 1, 2),)])
def test_area_refuses_positions_that_do_not_fit(positions: Any) -> None:
    with pytest.raises(ValueError, match="strictly ascending"):
        area(np.zeros((4, 3)), positions)


def test_rank_correlation_of_plain_cases() -> None:
    left = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 4], [1, NAN, 3, 4]])
    right = np.array(
        [[0.1, 0.5, 0.6, 9], [4, 3, 2, 1], [1, 1, 2, 2], [1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 3, 4]]
    )
    expected = [1, -1, 4 / np.sqrt(5 * 4), NAN, NAN, NAN]  # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5
    np.testing.assert_array_equal(rank_correlation(left, right), expected)
    assert rank_correlation(left[:0], right[:0]).shape == (0,)


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(8)
    for values in (3, 20, 10**6):
        left, right = rng.integers(0, values, (2, 12, 30)) / 7
        expected = [stats.spearmanr(*rows).statistic for rows in zip(left, right, strict=True)]
        np.testing.assert_allclose(rank_correlation(left, right), expected, rtol=1e-12)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 6))
def test_rank_correlation_is_symmetric_and_that_with_itself_is_one(
    seed: int, length: int, values: int
) -> None:
    left, right = np.random.default_rng(seed).integers(0, values, (2, 3, length)).astype(np.float32)
    scores = rank_correlation(left, right)
    np.testing.assert_array_equal(scores, rank_correlation(right, left))
    np.testing.assert_array_equal(scores, -rank_correlation(left, -right))
    np.testing.assert_array_equal(scores, rank_correlation(np.exp(left), right))
    assert (np.isnan(scores) | (abs(scores) <= 1)).all()
    constant = (left == left[:, :1]).all(axis=1)
    np.testing.assert_array_equal(rank_correlation(left, left), np.where(constant, np.nan, 1))


def test_rank_correlation_refuses_maps() -> None:
    with pytest.raises(ValueError, match=r"same shape \(B, n\)"):
        rank_correlation(np.zeros((2, 7, 7)), np.zeros((2, 7, 7)))


# ------------------------------------------------------------------------------------------------------------
# Faithfulness


def test_pixels_are_ordered_from_the_most_important() -> None:
    importance = np.array([[[0.1, -3.0, 0.7], [0.4, 9.0, 0.0]]])
    order = pixel_order(importance, np.random.default_rng(0))
    assert order.tolist() == [[4, 2, 3, 0, 5, 1]]
    assert order.dtype == np.int32


def test_pixels_of_equal_importance_come_in_random_order() -> None:
    dead = np.zeros((6000, 2, 2), np.float32)
    order = pixel_order(dead, np.random.default_rng(0))
    _, times = np.unique(order, axis=0, return_counts=True)
    assert len(times) == 24  # every order there is
    assert stats.chisquare(times).pvalue > 0.01
    dead[:, 0, 1] = dead[:, 1, 1] = 1
    order = pixel_order(dead, np.random.default_rng(0))
    assert (np.sort(order[:, :2]) == (1, 3)).all()
    assert np.count_nonzero(order[:, 0] == 1) == pytest.approx(3000, abs=150)
    assert np.count_nonzero(order[:, 2] == 0) == pytest.approx(3000, abs=150)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(1, 30))
def test_order_is_a_permutation_that_descends(seed: int, height: int, width: int, values: int) -> None:
    importance = np.random.default_rng(seed).integers(-values, values, (3, height, width)) / 4
    order = pixel_order(importance, np.random.default_rng(seed))
    assert (np.sort(order) == np.arange(height * width)).all()
    assert (np.diff(np.take_along_axis(importance.reshape(3, -1), order, axis=1)) <= 0).all()
    np.testing.assert_array_equal(order, pixel_order(importance, np.random.default_rng(seed)))


def test_importance_does_not_change_how_much_is_drawn() -> None:
    following = []
    for importance in (np.zeros((2, 3, 3)), np.random.default_rng(1).random((2, 3, 3))):
        rng = np.random.default_rng(0)
        pixel_order(importance, rng)
        following.append(rng.random())
    assert following[0] == following[1]


@pytest.mark.parametrize("importance", [np.zeros((3, 3)), np.zeros((1, 3, 3), np.uint8)])
def test_order_refuses_what_is_no_importance(importance: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"floating point of shape \(B, H, W\)"):
        pixel_order(importance, np.random.default_rng(0))


def test_blur_is_a_gaussian_of_each_channel() -> None:
    images = np.random.default_rng(9).integers(0, 256, (3, 2, 30, 40), dtype=np.uint8)
    for sigma in (1.0, 2.5):
        expected = ndimage.gaussian_filter(images.astype(float), sigma, mode="mirror", axes=(2, 3))
        blurred = blur(images, sigma)
        assert blurred.dtype == np.uint8
        assert abs(blurred - expected).max() < 1.5  # both round, the kernel's weights and the result
        assert abs(blurred - expected).mean() < 0.5
        for index in np.ndindex(3, 2):
            np.testing.assert_array_equal(blurred[index], cv2.GaussianBlur(images[index], (0, 0), sigma))


def test_blur_leaves_flat_images_and_other_channels_alone() -> None:
    images = np.full((2, 3, 20, 20), 77, np.uint8)
    images[0, 1, 10, 10] = 255
    images.flags.writeable = False
    blurred = blur(images, 2.0)
    assert 77 < blurred[0, 1].max() < 100
    assert (blurred[0, ::2] == 77).all()
    assert (blurred[1] == 77).all()
    np.testing.assert_array_equal(blur(images.swapaxes(0, 1), 2.0), blurred.swapaxes(0, 1))


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan])
def test_blur_refuses_a_width_of_nothing(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be above 0"):
        blur(np.zeros((1, 1, 4, 4), np.uint8), sigma)


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 1, 4, 4), np.float32)])
def test_blur_refuses_what_is_no_stack_of_frames(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(B, C, H, W\)"):
        blur(images, 1.0)


def test_a_linear_network_loses_and_regains_what_its_pixels_weigh() -> None:
    weights = np.array([[0.1, 0.4], [0.2, 0.3]])
    images, reference = np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    shares = np.linspace(0, 1, 5)

    def predict(shown: np.ndarray) -> np.ndarray:
        return (shown * weights).sum(axis=(2, 3))

    best = pixel_order(weights[None], np.random.default_rng(0))
    removal, insertion = perturbation_curves(predict, images, reference, best, shares)
    assert removal.shape == insertion.shape == (5, 1, 1)
    np.testing.assert_allclose(removal[:, 0, 0], [1, 0.6, 0.3, 0.1, 0], atol=1e-15)
    np.testing.assert_allclose(insertion[:, 0, 0], [0, 0.4, 0.7, 0.9, 1], atol=1e-15)
    assert area(removal[:, 0, 0], shares) == pytest.approx(0.375)
    assert area(insertion[:, 0, 0], shares) == pytest.approx(0.625)
    removal, insertion = perturbation_curves(predict, images, reference, best[:, ::-1], shares)
    np.testing.assert_allclose(removal[:, 0, 0], [1, 0.9, 0.7, 0.4, 0], atol=1e-15)
    np.testing.assert_allclose(insertion[:, 0, 0], [0, 0.1, 0.3, 0.6, 1], atol=1e-15)


class Network:
    """Three outputs that are exact integers, so that they do not depend on how images are batched."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.weights = np.random.default_rng(10).integers(-9, 10, (int(np.prod(shape)), 3))
        self.shown: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shown.append(images.copy())
        scores = images.reshape(len(images), -1).astype(np.int64) @ self.weights
        return (scores // 3) ** 2 % 1009


def naive_curves(
    predict: Network,
    images: np.ndarray,
    reference: np.ndarray,
    order: np.ndarray,
    shares: list[float],
    channels: slice,
) -> tuple[np.ndarray, np.ndarray]:
    """Every image built anew from a mask of its pixels."""
    removal, insertion = [], []
    for share in shares:
        chosen = np.zeros(order.shape, bool)
        for row, pixels in zip(chosen, order, strict=True):
            row[pixels[: round(share * order.shape[1])]] = True
        first = chosen.reshape(len(images), 1, *images.shape[2:])
        removed, inserted = images.copy(), images.copy()
        removed[:, channels] = np.where(first, reference, images)[:, channels]
        inserted[:, channels] = np.where(first, images, reference)[:, channels]
        removal.append(predict(removed))
        insertion.append(predict(inserted))
    return np.array(removal, float), np.array(insertion, float)


def frames(dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, reference and order that can't be written to."""
    rng = np.random.default_rng(11)
    images, reference = rng.integers(0, 256, (2, 7, 4, 6, 5)).astype(dtype)
    order = pixel_order(rng.random((7, 6, 5)), rng)
    for array in (images, reference, order):
        array.flags.writeable = False
    return images, reference, order


@pytest.mark.parametrize("channels", [slice(None), slice(-1, None), slice(0, 4, 2)])
@pytest.mark.parametrize("batch_size", [1, 3, 512])
@pytest.mark.parametrize(
    "shares", [[0, 0.1, 0.25, 0.5, 0.9, 1], [0.3], [0.2, 1], [0, 0.5], [0, 0.01, 0.01, 0.04]]
)
def test_curves_are_those_of_images_built_anew(channels: slice, batch_size: int, shares: list[float]) -> None:
    for dtype in (np.uint8, np.float32):
        images, reference, order = frames(dtype)
        network = Network(images.shape[1:])
        curves = perturbation_curves(network, images, reference, order, shares, channels, batch_size)
        assert all(shown.dtype == dtype and len(shown) <= batch_size for shown in network.shown)
        for curve, expected in zip(
            curves, naive_curves(network, images, reference, order, shares, channels), strict=True
        ):
            assert curve.dtype == np.float64
            np.testing.assert_array_equal(curve, expected)


def test_ends_of_the_curves_are_the_images_and_the_reference() -> None:
    images, reference, order = frames()
    network = Network(images.shape[1:])
    removal, insertion = perturbation_curves(network, images, reference, order, [0, 0.5, 1])
    np.testing.assert_array_equal(removal[0], network(images))
    np.testing.assert_array_equal(insertion[-1], network(images))
    np.testing.assert_array_equal(removal[-1], network(reference))
    np.testing.assert_array_equal(insertion[0], network(reference))


@pytest.mark.parametrize(
    ("shares", "predictions"),
    [
        ([0, 0.5, 1], 4),
        ([0, 0.5], 4),  # insertion starts from the reference, which removal never reaches
        ([0.5, 1], 4),
        ([0.2, 0.4], 4),
        ([0, 0.001, 0.5, 0.501, 1, 1], 4),
        ([0, 1], 2),
    ],
)
def test_nothing_is_predicted_twice(shares: list[float], predictions: int) -> None:
    images, reference, order = frames()
    network = Network(images.shape[1:])
    removal, insertion = perturbation_curves(network, images, reference, order, shares, batch_size=5)
    assert len(network.shown) == 2 * predictions  # two batches
    assert len({shown.tobytes() for shown in network.shown}) == 2 * predictions
    assert removal.shape == insertion.shape == (len(shares), 7, 3)


def test_only_the_chosen_channels_change() -> None:
    images, reference, order = frames()
    network = Network(images.shape[1:])
    perturbation_curves(network, images, reference, order, np.linspace(0, 1, 5), slice(-1, None))
    for shown in network.shown:
        np.testing.assert_array_equal(shown[:, :-1], images[:, :-1])
    assert len({shown[:, -1].tobytes() for shown in network.shown}) == 8


def test_a_network_may_answer_with_the_same_array_every_time() -> None:
    images, reference, order = frames()
    network, answer = Network(images.shape[1:]), np.empty((7, 3))

    def predict(shown: np.ndarray) -> np.ndarray:
        answer[:] = network(shown)
        return answer

    shares = [0, 0.3, 0.6, 1]
    for curve, expected in zip(
        perturbation_curves(predict, images, reference, order, shares),
        perturbation_curves(network, images, reference, order, shares),
        strict=True,
    ):
        np.testing.assert_array_equal(curve, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": np.zeros((7, 1, 6, 5), np.uint8)}, "reference must be like the images"),
        ({"reference": np.zeros((7, 4, 6, 5), np.float32)}, "reference must be like the images"),
        ({"order": np.zeros((7, 6, 5), np.int32)}, r"order must have shape \(7, 30\)"),
        ({"shares": [0, 50, 100]}, r"within \[0, 1\]"),
        ({"shares": [-0.1, 0.5]}, r"within \[0, 1\]"),
        ({"shares": [0.5, 0.2]}, "shares must ascend"),
    ],
)
def test_curves_refuse_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    images, reference, order = frames()
    arguments: dict[str, Any] = {
        "predict": Network(images.shape[1:]),
        "images": images,
        "reference": reference,
        "order": order,
        "shares": [0, 1],
    }
    with pytest.raises(ValueError, match=message):
        perturbation_curves(**arguments | changed)
