"""Eq. 1 and 2 by hand, and the projected masks against plain upsampling in float64."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from camal_rl import camal
from camal_rl.attention import upsample
from camal_rl.camal import EMPTY_MASK, METHODS, alpha_beta, camal_loss, projected_loss
from camal_rl.masks import mask_weights

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


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (MASK.to(torch.uint8) * 255, "torch.uint8 from 0 to 255"),
        (MASK.half() * 255, "torch.float16 from 0 to 255"),
        (MASK.float() * 255, "torch.float32 from 0 to 255"),
        (MASK + 1, "torch.int64 from 1 to 2"),
        (torch.where(MASK == 0, 255, MASK), "torch.int64 from 1 to 255"),
        (MASK * 2 - 1, "torch.int64 from -1 to 1"),
        (torch.where(MASK == 0, float("nan"), MASK), "torch.float32 from nan to nan"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_it_holds(mask: Tensor, found: str) -> None:
    for function in (alpha_beta, camal_loss):
        with pytest.raises(ValueError, match=rf"{found}: .*mask > 127.*mask == label"):
            function(HEAT, mask)


def test_soft_masks_are_masks() -> None:
    alpha, _ = alpha_beta(HEAT, MASK * 0.5)
    assert alpha.tolist() == pytest.approx([0.6])  # (0.1 + 0.5) / (0.5 + 0.5)


def test_only_the_first_masks_on_an_accelerator_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camal, "_LOOKED_AT", Counter())
    looks: list[object] = []
    monkeypatch.setattr(torch, "aminmax", lambda mask: looks.append(mask) or (0.0, 1.0))
    for _ in range(15):
        camal.check_mask(torch.empty(1, 2, 2, device="meta"))
        camal.check_mask(torch.empty(1, 2, 2, device="meta", dtype=torch.bool))
    assert len(looks) == 10


def test_a_channel_too_many_says_to_squeeze_it() -> None:
    with pytest.raises(ValueError, match=r"squeeze\(1\)"):
        camal_loss(HEAT, MASK.unsqueeze(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_maps_in_half_precision_is_taken_in_float32(dtype: torch.dtype) -> None:
    heat = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.rand(2, 160, 120, generator=torch.Generator().manual_seed(1)) < 0.3
    assert torch.equal(camal_loss(heat, mask), camal_loss(heat.float(), mask))
