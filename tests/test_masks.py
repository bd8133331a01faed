"""Target masks from label buffers, and the projected masks against plain upsampling in float64."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from camal_rl.attention import upsample
from camal_rl.camal import alpha_beta
from camal_rl.errors import UserError
from camal_rl.game.definition import load_definition
from camal_rl.masks import Projection, mask_weights, target_mask


def test_a_mask_follows_the_pixels_and_not_the_list_of_labels() -> None:
    pixels = np.zeros((120, 160), np.uint8)
    pixels[60:] = 1  # floor
    pixels[10:20, 30:50] = 80
    pixels[40:50, 30:50] = 90
    names = {80: "Cacodemon", 90: "DeadCacodemon", 70: "Cacodemon", 1: "Cacodemon", 0: "Cacodemon"}
    labels = [
        SimpleNamespace(value=value, object_name=name, object_category="", x=0, y=0, width=160, height=120)
        for value, name in names.items()
    ]
    mask = np.empty((120, 160), np.uint8)
    state = cast(Any, SimpleNamespace(labels=labels, labels_buffer=pixels))
    target_mask(state, load_definition("Basic"), mask)
    np.testing.assert_array_equal(mask, pixels == 80)


def test_an_engine_without_labels_is_told_what_switched_them_off() -> None:
    state = cast(Any, SimpleNamespace(labels=None, labels_buffer=None))
    with pytest.raises(UserError, match=r"gives no labels: take \+viz_nocheat .* out of game_args\."):
        target_mask(state, load_definition("Basic"), np.empty((120, 160), np.uint8))


@pytest.mark.parametrize("targets", range(6))
def test_a_mask_has_the_pixels_of_every_target_however_many(targets: int) -> None:
    definition = load_definition("Basic")
    names = [*(["Cacodemon"] * targets), "Blood", "DoomPlayer"]
    rng = np.random.default_rng(targets)
    pixels = rng.integers(0, 2, (30, 40), np.uint8)
    labels = []
    for value, name in enumerate([*names, "Cacodemon"], 2):
        y, x, height, width = (
            int(rng.integers(low, high)) for low, high in ((0, 20), (0, 30), (1, 10), (1, 10))
        )
        pixels[y : y + height, x : x + width][rng.random((height, width)) < 0.7] = value  # over those before
        labels.append(
            SimpleNamespace(
                value=value, object_name=name, object_category="Unknown", x=x, y=y, width=width, height=height
            )
        )
    labels[-1].value = 1  # what a crowd has left no value for is drawn as a wall
    pixels[pixels == len(labels) + 1] = 1
    out = np.full((30, 40), 7, np.uint8)
    box = target_mask(cast(Any, SimpleNamespace(labels=labels, labels_buffer=pixels)), definition, out)
    np.testing.assert_array_equal(out, (pixels >= 2) & (pixels < 2 + targets))
    assert out[box].sum() == out.sum()
    assert (out[box].size > 0) == (targets > 0)


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


def test_projection_takes_bool_and_strided_masks() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.2
    expected = mask_weights(mask[::2, ::-1].T.astype(np.uint8), (3, 4))
    assert np.array_equal(mask_weights(mask[::2, ::-1].T, (3, 4)), expected)


def test_single_precision_weights_are_the_rounded_double_ones() -> None:
    mask = (np.random.default_rng(0).random((240, 320)) < 0.2).astype(np.uint8)
    double = mask_weights(mask, (7, 7), dtype=np.float64)
    assert np.array_equal(mask_weights(mask, (7, 7)), double.astype(np.float32))


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
    ],
)
def test_projection_refuses_what_is_not_a_mask(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_weights(size=(3, 4), **arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_projected_one_by_one_within_their_boxes_have_the_weights_of_all(dtype: type) -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((240, 320)) < share for share in (0, 0.01, 0.5, 1)]).astype(np.uint8)
    masks[1, :100], masks[1, :, 150:] = 0, 0
    boxes = [
        (slice(7, 7), slice(9, 9)),
        (slice(90, 240), slice(0, 160)),  # larger than need be
        (slice(0, 240), slice(0, 320)),
        (slice(0, 240), slice(0, 320)),
    ]
    projection = Projection((240, 320), (7, 9))
    sums = [projection(mask, box) for mask, box in zip(masks, boxes, strict=True)]
    out = projection.weights(np.array(sums)).astype(dtype)
    expected = mask_weights(masks, (7, 9), dtype=dtype)
    np.testing.assert_allclose(out, expected, rtol=1e-12 if dtype is np.float64 else 1e-6)
    assert not out[0, 0].any()
    assert not out[3, 1].any()
