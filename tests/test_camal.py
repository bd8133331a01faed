"""Eq. 1 and 2 by hand, and the projected masks against plain upsampling in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from camal_rl.attention import upsample
from camal_rl.camal import EMPTY_MASK, METHODS, alpha_beta, camal_loss, costs, projected_loss
from camal_rl.masks import Projection, mask_weights

HEAT = torch.tensor([[[0.0, 0.2], [0.4, 1.0]]], dtype=torch.float64)
MASK = torch.tensor([[[0, 1], [0, 1]]])


def mixed_batch() -> tuple[Tensor, Tensor]:
    """A target in view (alpha 0.6, beta 0.2), an empty mask (beta 0.4) and a full one (alpha 0.4)."""
    mask = torch.cat([MASK, torch.zeros_like(MASK), torch.ones_like(MASK)])
    return HEAT.repeat(3, 1, 1).requires_grad_(), mask


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64])
def test_alpha_and_beta_are_the_means_inside_and_outside_the_mask(dtype: torch.dtype) -> None:
    alpha, beta = alpha_beta(HEAT, MASK.to(dtype))
    assert alpha.tolist() == pytest.approx([0.6], rel=1e-15)
    assert beta.tolist() == pytest.approx([0.2], rel=1e-15)


def test_a_perfect_map_has_alpha_one_and_beta_zero() -> None:
    mask = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    alpha, beta = alpha_beta(mask.float(), mask)
    assert alpha.tolist() == [1, 1, 1]
    assert beta.tolist() == [0, 0, 0]
    assert camal_loss(mask.float(), mask).item() == -1
    assert camal_loss(1 - mask.float(), mask).item() == 1


def test_mean_over_no_pixels_is_zero_with_zero_gradient() -> None:
    heat, mask = mixed_batch()
    alpha, beta = alpha_beta(heat, mask)
    assert alpha.tolist() == pytest.approx([0.6, 0.0, 0.4], rel=1e-15)
    assert beta.tolist() == pytest.approx([0.2, 0.4, 0.0], rel=1e-15)
    (gradient,) = torch.autograd.grad(alpha[1] + beta[2], heat)
    assert torch.equal(gradient, torch.zeros_like(heat))


@pytest.mark.parametrize(
    ("method", "empty_mask", "expected"),
    [
        ("camal", "ignore", ((0.2 - 0.6) + (0 - 0.4)) / 2),
        ("camal", "suppress", ((0.2 - 0.6) + 0.4 + (0 - 0.4)) / 3),
        ("suppress", "ignore", (0.2 + 0.0) / 2),
        ("suppress", "suppress", (0.2 + 0.4 + 0.0) / 3),
    ],
)
def test_loss_averages_over_the_samples_that_count(method: str, empty_mask: str, expected: float) -> None:
    heat, mask = mixed_batch()
    loss = camal_loss(heat, mask, empty_mask=empty_mask, method=method)
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    (gradient,) = torch.autograd.grad(loss, heat)
    inside, outside = MASK[0] / 2, (1 - MASK[0]) / 2
    attract, count = int(method == "camal"), 2 if empty_mask == "ignore" else 3
    expected_gradient = torch.stack(
        [
            outside - attract * inside,
            torch.full((2, 2), 0.25 if empty_mask == "suppress" else 0.0),
            torch.full((2, 2), -0.25 * attract),
        ]
    )
    torch.testing.assert_close(gradient, expected_gradient.double() / count, rtol=1e-15, atol=0)


def test_the_only_target_of_a_batch_carries_the_whole_loss() -> None:
    heat, mask = mixed_batch()
    assert camal_loss(heat[:2], mask[:2]).item() == pytest.approx(0.2 - 0.6, rel=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_targets_has_an_exact_zero_loss_that_is_part_of_the_graph(method: str) -> None:
    heat = HEAT.clone().requires_grad_()
    weights = torch.from_numpy(mask_weights(np.zeros((1, 2, 2), np.uint8), (2, 2)))
    for loss in (
        camal_loss(heat, torch.zeros_like(MASK), method=method),
        projected_loss(heat, weights, method=method)[0],
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, heat)
        assert torch.equal(gradient, torch.zeros_like(heat))


def test_a_map_at_its_own_resolution_is_upsampled_to_the_masks() -> None:
    heat = torch.rand(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 7, 10, generator=torch.Generator().manual_seed(1)) < 0.3
    assert torch.equal(camal_loss(heat, mask), camal_loss(upsample(heat, (7, 10)), mask))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("empty_mask", EMPTY_MASK)
def test_gradients_match_finite_differences(method: str, empty_mask: str) -> None:
    heat = torch.rand(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[1] = False
    assert torch.autograd.gradcheck(
        lambda heat: camal_loss(heat, mask, empty_mask=empty_mask, method=method), heat.requires_grad_()
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, NDArray[np.uint8]]:
    """Attention maps (B, h, w) and masks (B, H, W) of any density, at unrelated sizes."""
    batch = draw(st.integers(1, 4))
    map_size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    mask_size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    density = draw(st.lists(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]), min_size=batch, max_size=batch))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = random.random((batch, *mask_size)) < np.array(density)[:, None, None]
    return torch.from_numpy(random.random((batch, *map_size))), mask.astype(np.uint8)


@settings(max_examples=150, deadline=None, database=None)
@given(batches(), st.sampled_from(EMPTY_MASK), st.sampled_from(METHODS))
def test_projected_masks_give_the_numbers_and_gradients_of_plain_upsampling(
    batch: tuple[Tensor, NDArray[np.uint8]], empty_mask: str, method: str
) -> None:
    heat, mask = batch
    heat.requires_grad_()
    weights = torch.from_numpy(mask_weights(mask, (heat.shape[1], heat.shape[2]), dtype=np.float64))
    loss, alpha, beta, has_target = projected_loss(heat, weights, empty_mask=empty_mask, method=method)

    plain_mask = torch.from_numpy(mask)
    plain_loss = camal_loss(heat, plain_mask, empty_mask=empty_mask, method=method)
    plain_alpha, plain_beta = alpha_beta(upsample(heat, (mask.shape[1], mask.shape[2])), plain_mask)

    torch.testing.assert_close(alpha, plain_alpha, rtol=1e-10, atol=0)
    torch.testing.assert_close(beta, plain_beta, rtol=1e-10, atol=0)
    assert has_target.dtype == torch.bool
    assert has_target.tolist() == [bool(one_mask.any()) for one_mask in mask]
    # A loss is a difference: rounding is relative to what is subtracted, not to what is left.
    scale = (alpha + beta).max().item()
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-10 * scale)

    for projected, plain in (
        (alpha.sum(), plain_alpha.sum()),
        (beta.sum(), plain_beta.sum()),
        (loss, plain_loss),
    ):
        (gradient,) = torch.autograd.grad(projected, heat, retain_graph=True)
        (plain_gradient,) = torch.autograd.grad(plain, heat, retain_graph=True)
        scale = weights.max().item()
        torch.testing.assert_close(gradient, plain_gradient, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize(
    ("mask_size", "map_size"),
    [((240, 320), (7, 7)), ((240, 320), (26, 36)), ((84, 84), (7, 7)), ((5, 4), (5, 4)), ((3, 2), (7, 5))],
)
def test_projection_is_the_adjoint_of_interpolate(
    mask_size: tuple[int, int], map_size: tuple[int, int]
) -> None:
    mask = (np.random.default_rng(0).random(mask_size) < 0.3).astype(np.uint8)
    heat = torch.zeros(1, *map_size, dtype=torch.float64, requires_grad=True)
    means = alpha_beta(upsample(heat, mask_size), torch.from_numpy(mask)[None])
    expected = np.concatenate([torch.autograd.grad(mean, heat, retain_graph=True)[0] for mean in means])
    weights = mask_weights(mask, map_size, dtype=np.float64)
    np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), [1, 1], rtol=1e-12)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (239, 319, 1, 1), (100, 40, 30, 20), (1, 0, 239, 320)])
def test_only_the_box_around_the_mask_matters(box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    mask = np.zeros((240, 320), np.uint8)
    mask[top : top + height, left : left + width] = 1
    weights = mask_weights(mask, (7, 9), dtype=np.float64)
    swapped = mask_weights(1 - mask, (7, 9), dtype=np.float64)
    assert weights.min() >= 0
    # One of the two is a difference of sums up to 1219 pixels a cell, and rounds like those.
    np.testing.assert_allclose(weights, swapped[::-1], rtol=0, atol=1e-11)


def test_projection_of_a_batch_is_the_projection_of_each_mask() -> None:
    mask = (np.random.default_rng(0).random((4, 12, 15)) < 0.2).astype(np.uint8)
    mask[1], mask[2] = 0, 1
    weights = mask_weights(mask, (3, 4))
    assert weights.dtype == np.float32
    assert weights.shape == (4, 2, 3, 4)
    for one_weights, one_mask in zip(weights, mask, strict=True):
        assert np.array_equal(one_weights, mask_weights(one_mask, (3, 4)))
    assert not weights[1, 0].any()
    assert not weights[2, 1].any()


def test_soft_masks_give_alpha_and_beta_of_plain_upsampling() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 12, 17, dtype=torch.float64, generator=generator)
    masks[1] = 0
    masks[2, :, :8] = 0
    heat = torch.rand(3, 3, 4, dtype=torch.float64, generator=generator)
    weights = torch.from_numpy(mask_weights(masks.numpy(), (3, 4), dtype=np.float64))
    alpha, beta = (heat[:, None] * weights).sum(dim=(2, 3)).unbind(dim=1)
    expected = alpha_beta(upsample(heat, (12, 17)), masks)
    torch.testing.assert_close(torch.stack([alpha, beta]), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_a_soft_mask_of_zeros_and_ones_is_projected_as_the_mask_is() -> None:
    masks = np.random.default_rng(0).integers(0, 2, (2, 9, 11), dtype=np.uint8)
    soft = mask_weights(masks.astype(np.float32), (3, 4), dtype=np.float64)
    np.testing.assert_allclose(soft, mask_weights(masks, (3, 4), dtype=np.float64), rtol=1e-12, atol=1e-15)


def test_projection_writes_to_the_array_given() -> None:
    mask = (np.random.default_rng(0).random((2, 12, 15)) < 0.2).astype(np.uint8)
    for masks, out in ((mask, np.full((2, 2, 3, 4), np.nan)), (mask[0], np.full((2, 3, 4), np.nan))):
        assert mask_weights(masks, (3, 4), out=out) is out
        assert np.array_equal(out, mask_weights(masks, (3, 4), dtype=np.float64))


def test_projection_takes_bool_and_strided_masks() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.2
    expected = mask_weights(mask[::2, ::-1].T.astype(np.uint8), (3, 4))
    assert np.array_equal(mask_weights(mask[::2, ::-1].T, (3, 4)), expected)


def test_single_precision_weights_are_the_rounded_double_ones() -> None:
    mask = (np.random.default_rng(0).random((240, 320)) < 0.2).astype(np.uint8)
    double = mask_weights(mask, (7, 7), dtype=np.float64)
    assert np.array_equal(mask_weights(mask, (7, 7)), double.astype(np.float32))


def test_sums_of_masks_taken_one_by_one_give_the_weights_of_all() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((240, 320)) < share for share in (0, 0.01, 0.5, 1)]).astype(np.uint8)
    masks[1, :100], masks[1, :, 150:] = 0, 0
    projection = Projection((240, 320), (7, 9))
    sums = np.array([projection(mask) for mask in masks])
    np.testing.assert_allclose(sums.sum(axis=(1, 2)), masks.sum(axis=(1, 2)), rtol=1e-12)
    box = slice(90, 240), slice(0, 160)  # larger than need be
    np.testing.assert_allclose(projection(masks[1], box), sums[1], rtol=1e-12)
    assert not projection(masks[0], (slice(7, 7), slice(9, 9))).any()
    assert np.array_equal(projection.weights(sums), mask_weights(masks, (7, 9), dtype=np.float64))
    assert np.array_equal(projection.weights(sums[3]), mask_weights(masks[3], (7, 9), dtype=np.float64))


@pytest.mark.parametrize("empty_mask", EMPTY_MASK)
@pytest.mark.parametrize("method", METHODS)
def test_costs_add_up_to_the_loss(empty_mask: str, method: str) -> None:
    masks = (np.random.default_rng(0).random((5, 12, 15)) < 0.2).astype(np.uint8)
    masks[1], masks[2] = 0, 1
    weights = torch.from_numpy(mask_weights(masks, (3, 4), dtype=np.float64))
    heat = torch.rand(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, _, _, has_target = projected_loss(heat, weights, empty_mask=empty_mask, method=method)
    values, counted = costs(weights, empty_mask=empty_mask, method=method)
    assert ((heat * values).sum() / counted.sum()).item() == pytest.approx(loss.item(), rel=1e-14)
    assert counted.tolist() == (has_target.tolist() if empty_mask == "ignore" else [True] * 5)
    assert costs(weights[1:2], method=method)[0].abs().max() == 0  # nothing in view


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros((2, 2), np.int64)}, r"uint8, bool or floating .* got int64 of shape \(2, 2\)"),
        ({"mask": np.zeros(2, np.float32)}, r"got float32 of shape \(2,\)"),
        ({"mask": np.full((2, 2), 1.5)}, r"a soft mask must lie in \[0, 1\]"),
        ({"mask": np.full((2, 2), np.nan)}, r"a soft mask must lie in \[0, 1\]"),
        ({"mask": np.zeros(2, np.uint8)}, r"got uint8 of shape \(2,\)"),
        ({"mask": np.full((2, 2), 255, np.uint8)}, "0 and 1 only, got values up to 255: pass mask != 0"),
        ({"mask": np.eye(2, dtype=np.uint8) * 2}, "0 and 1 only, got values up to 2"),
        (
            {"mask": np.zeros((2, 2), np.uint8), "out": np.zeros((2, 4, 3))},
            r"out must have shape \(2, 3, 4\), got \(2, 4, 3\)",
        ),
    ],
)
def test_projection_refuses_what_is_not_a_mask(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_weights(size=(3, 4), **arguments)


def test_losses_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"same shape \(B, H, W\), got \(1, 2, 2\) and \(2, 2\)"):
        alpha_beta(HEAT, MASK[0])
    with pytest.raises(ValueError, match=r"one batch, got \(1, 2, 2\) and \(2, 2, 2\)"):
        camal_loss(HEAT, MASK.repeat(2, 1, 1))
    with pytest.raises(ValueError, match=r"do not fit, got \(1, 2, 2\) and \(1, 3, 2, 2\)"):
        projected_loss(HEAT, torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="unknown empty_mask 'drop'; valid: ignore, suppress"):
        camal_loss(HEAT, MASK, empty_mask="drop")
    with pytest.raises(ValueError, match="unknown loss method 'vanilla'; valid: camal, suppress"):
        projected_loss(HEAT, torch.zeros(1, 2, 2, 2), method="vanilla")
