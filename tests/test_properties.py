"""Any shape, mask and magnitude: each function of the arithmetic gives finite numbers in range, or refuses.

What the numbers are in plain cases is asked in each module's own tests.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camal_rl import attention, camal, metrics, ppo, stats
from camal_rl.game import frames
from camal_rl.masks import mask_weights

# The same examples every time: a failure in CI then comes from the change that is tested, and anyone can
# repeat it.
few = settings(max_examples=30, deadline=None, derandomize=True)  # where one takes milliseconds
some = settings(few, max_examples=60)
many = settings(few, max_examples=150)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASK_SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))
BATCHES = st.integers(1, 4)
EMPTY_MASK, METHODS = st.sampled_from(camal.EMPTY_MASK), st.sampled_from(camal.METHODS)
MAGNITUDES = st.sampled_from([1e-38, 1e-30, 1e-18, 1e-10, 1.0, 1e10, 1e20, 1e30])  # of float32
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
LARGEST_CHANCE = np.float32(1 - 2**-24)  # that a generator of numbers below 1 gives in float32


@st.composite
def masks(draw: st.DrawFn, batch: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (batch, H, W), each empty, full, of one pixel, of one side or random."""
    rng = np.random.default_rng(draw(SEEDS))
    pixel = np.zeros(size, np.uint8)
    pixel.flat[rng.integers(pixel.size)] = 1
    side = pixel.cumsum(axis=1).max(axis=0) + 0 * pixel  # from that pixel's column on
    kinds = [0 * pixel, 0 * pixel + 1, pixel, side, rng.integers(0, 2, size)]
    chosen = draw(st.lists(st.sampled_from(range(len(kinds))), min_size=batch, max_size=batch))
    return np.array([kinds[kind] for kind in chosen], np.uint8)


@st.composite
def heats(draw: st.DrawFn, batch: int, size: tuple[int, int]) -> np.ndarray:
    """float32 (batch, h, w) in [0, 1] of multiples of 1 / LEVELS: dead, constant, with ties or without."""
    full = metrics.LEVELS
    levels = draw(st.sampled_from([[0], [full], [0, 1], [0, full // 3, full // 2, full], range(full + 1)]))
    ranks = np.random.default_rng(draw(SEEDS)).integers(0, len(levels), (batch, *size))
    return (np.array(levels)[ranks] / full).astype(np.float32)


@st.composite
def supervised(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Attention maps and masks of unrelated sizes."""
    batch = draw(BATCHES)
    return draw(heats(batch, draw(SIZES))), draw(masks(batch, draw(MASK_SIZES)))


@st.composite
def feature_maps(draw: st.DrawFn) -> tuple[Tensor, torch.Generator]:
    """float32 (B, K, h, w) of any magnitude, and a generator for what else is needed."""
    shape = draw(BATCHES), draw(st.integers(1, 5)), *draw(SIZES)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    maps = torch.randn(shape, generator=generator) * draw(MAGNITUDES)
    sign = draw(st.sampled_from(["any", "positive", "negative", "zero", "constant"]))
    changed = {"positive": maps.abs(), "negative": -maps.abs(), "zero": 0 * maps}
    if sign == "constant":
        return maps[..., :1, :1].expand(shape).clone(), generator
    return changed.get(sign, maps), generator


@st.composite
def scores(draw: st.DrawFn, environments: int) -> np.ndarray:
    """(R, environments), with ties or without, up to the largest numbers whose sums are still finite."""
    shape = draw(st.integers(1, 6)), environments
    rng = np.random.default_rng(draw(SEEDS))
    drawn = rng.integers(-2, 3, shape) / 2 if draw(st.booleans()) else rng.standard_cauchy(shape)
    return drawn * draw(st.sampled_from([0, 1e-300, 1, 1e290]))


def assert_in_unit_interval(*numbers: object, rounding: float = 0) -> None:
    for one in numbers:
        values = np.asarray(one)
        assert ((values >= -rounding) & (values <= 1 + rounding)).all()  # NaN is not


def finite_gradients(loss: Tensor, *inputs: Tensor) -> bool:
    return all(one.isfinite().all() for one in torch.autograd.grad(loss, inputs))


# ------------------------------------------------------------------------------------------------------------
# CAMAL


@some
@given(supervised(), EMPTY_MASK, METHODS)
def test_losses_are_in_range_and_their_gradients_finite(
    batch: tuple[np.ndarray, np.ndarray], empty_mask: str, method: str
) -> None:
    heat, mask = torch.from_numpy(batch[0]).requires_grad_(), batch[1]
    weights = torch.from_numpy(mask_weights(mask, heat.shape[1:]))
    assert_in_unit_interval(weights)
    covered = mask.mean(axis=(1, 2))
    has_pixels = np.stack([covered > 0, covered < 1], axis=1)  # (B, 2), inside and outside
    np.testing.assert_allclose(weights.sum(dim=(2, 3)), has_pixels, atol=1e-6)
    assert (weights[~has_pixels] == 0).all()

    rule = {"empty_mask": empty_mask, "method": method}
    plain = camal.camal_loss(heat, torch.from_numpy(mask), **rule)
    projected, alpha, beta, has_target = camal.projected_loss(heat, weights, **rule)
    assert has_target.tolist() == (covered > 0).tolist()
    assert_in_unit_interval(alpha.detach(), beta.detach(), rounding=1e-6)
    for loss in (plain, projected):
        assert (0 if method == "suppress" else -1) - 1e-6 <= loss.item() <= 1 + 1e-6
        assert finite_gradients(loss, heat)


def test_a_mask_may_have_more_pixels_than_half_precision_can_count() -> None:
    heat = torch.full((1, 240, 320), 0.5, dtype=torch.float16)
    mask = torch.zeros(1, 240, 320)
    mask[0, :2, :3] = 1
    assert [one.item() for one in camal.alpha_beta(heat, mask)] == [0.5, 0.5]


# ------------------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.filterwarnings("ignore:maps of 1 x 1")
@many
@given(feature_maps())
def test_normalized_maps_are_in_zero_to_one_with_finite_gradients(
    maps: tuple[Tensor, torch.Generator],
) -> None:
    cam = maps[0][:, 0].requires_grad_()
    heat = attention.normalize(cam)
    assert_in_unit_interval(heat.detach())
    assert finite_gradients((heat * torch.rand(heat.shape, generator=maps[1])).sum(), cam)


def test_a_map_whose_span_is_beyond_float32_shows_it() -> None:
    assert attention.normalize(torch.tensor([[[3e38, -3e38]]])).isnan().any()


@pytest.mark.filterwarnings("ignore:maps of 1 x 1")
@many
@given(feature_maps(), st.sampled_from(attention.METHODS), st.integers(1, 5))
def test_maps_of_every_method_are_finite_and_so_are_their_gradients(
    maps: tuple[Tensor, torch.Generator], method: str, units: int
) -> None:
    given_maps, generator = maps
    given_maps.requires_grad_()
    features = given_maps[0].numel()
    weight = torch.randn(features, units + 1, generator=generator).requires_grad_()

    def target(some_maps: Tensor) -> Tensor:
        outputs = (some_maps.flatten(1) @ weight).relu()
        return outputs if method == "diffgradcam" else outputs.sum(dim=1)

    cam = attention.class_activation_map(given_maps, target, method, samples=2, generator=generator)
    heat = attention.normalize(cam)
    assert cam.isfinite().all()
    assert (cam >= 0).all()
    assert_in_unit_interval(heat.detach())
    assert finite_gradients(heat.sum(), given_maps, weight)


@pytest.mark.filterwarnings("ignore:maps of 1 x 1")
@some
@given(feature_maps(), st.integers(1, 5), st.sampled_from([(), (1,), None]))
def test_the_map_in_closed_form_is_finite_and_so_are_its_gradients(
    maps: tuple[Tensor, torch.Generator], units: int, rows: tuple[int, ...] | None
) -> None:
    given_maps, generator = maps
    batch, channels = given_maps.shape[:2]
    hidden = torch.randn(batch, units, generator=generator).relu()
    pooled = torch.randn(units, channels, generator=generator)
    out_weight = torch.randn(*((batch,) if rows is None else rows), units, generator=generator)
    inputs = [one.requires_grad_() for one in (given_maps, pooled, out_weight)]
    cam = attention.closed_form_map(given_maps, hidden, pooled, out_weight)
    assert cam.isfinite().all()
    assert (cam >= 0).all()
    assert finite_gradients(attention.normalize(cam).sum(), *inputs)


# ------------------------------------------------------------------------------------------------------------
# Metrics


@some
@given(supervised())
def test_scores_are_those_of_their_definitions_pixel_by_pixel(batch: tuple[np.ndarray, np.ndarray]) -> None:
    heat, mask = batch
    found = metrics.alignment(heat, mask)
    for index, (pixels, target) in enumerate(zip(metrics.upsample(heat, mask.shape[1:]), mask, strict=True)):
        inside, outside = pixels[target == 1], pixels[target == 0]
        expected = dict.fromkeys(("iou", "pointing_game", "relevance_mass", "roc_auc"), np.nan)
        if inside.size or (pixels > metrics.TAU).any():
            expected["iou"] = (inside > metrics.TAU).sum() / ((pixels > metrics.TAU) | (target == 1)).sum()
        if inside.size:
            dead = pixels.max() == 0
            expected["pointing_game"] = 0 if dead else target[pixels == pixels.max()].mean()
            expected["relevance_mass"] = 0 if dead else inside.sum(dtype=float) / pixels.sum(dtype=float)
        if inside.size and outside.size:
            half = np.float32(0.5)  # halves are rounded up
            ones, others = (np.floor(part * metrics.LEVELS + half) for part in (inside[:, None], outside))
            expected["roc_auc"] = ((ones > others).mean() + (ones >= others).mean()) / 2
        for name, score in expected.items():
            np.testing.assert_allclose(found[name][index], score, rtol=1e-12, atol=1e-12, err_msg=name)


@many
@given(BATCHES.flatmap(lambda batch: MASK_SIZES.flatmap(lambda size: masks(batch, size))), SIZES)
def test_the_iou_of_a_mask_is_in_zero_to_one_or_nan_of_an_empty_mask(
    mask: np.ndarray, size: tuple[int, int]
) -> None:
    scores = metrics.iou_mask(mask_weights(mask, size), mask)
    seen = mask.any(axis=(1, 2))
    assert np.isnan(scores[~seen]).all()
    assert_in_unit_interval(scores[seen])


@some
@given(SEEDS, st.integers(2, 9), st.sampled_from([bool, np.uint8, np.float16, np.float32, np.float64]))
def test_an_area_lies_between_the_ends_of_its_curve(seed: int, length: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    highest = 1 if dtype is bool else (np.finfo if issubclass(dtype, np.floating) else np.iinfo)(dtype).max
    curves = (rng.random((3, length)) * min(float(highest), 1e300)).astype(dtype)
    areas = metrics.area(curves, np.cumsum(0.01 + rng.random(length)))
    rounding = 1 + 1e-12
    assert (areas >= curves.min(axis=1).astype(float) / rounding).all()
    assert (areas <= curves.max(axis=1).astype(float) * rounding).all()


VALUES = st.sampled_from([-np.inf, -1e308, -1.0, -5e-324, 0.0, 5e-324, 1.0, 1e308, np.inf])


@some
@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_ranks_take_any_numbers(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).reshape(-1, 1, 2).T
    (score,) = metrics.rank_correlation(one, other)
    constant = min(len(np.unique(one)), len(np.unique(other))) < 2
    assert np.isnan(score) if constant else -1 <= score <= 1


@some
@given(st.lists(VALUES, min_size=1, max_size=12), SEEDS)
def test_pixels_of_any_importance_are_ordered(values: list[float], seed: int) -> None:
    (order,) = metrics.pixel_order(np.array(values)[None, None], np.random.default_rng(seed))
    assert sorted(order) == list(range(len(values)))
    assert np.array(values)[order].tolist() == sorted(values, reverse=True)


@some
@given(SEEDS, SIZES, st.sampled_from([1e-300, 0.01, 0.5, 3.0, 50.0]))
def test_blurred_pixels_lie_between_those_of_their_channel(
    seed: int, size: tuple[int, int], sigma: float
) -> None:
    images = np.random.default_rng(seed).choice(np.array([0, 7, 200, 255], np.uint8), (2, 3, *size))
    blurred = metrics.blur(images, sigma)
    assert (blurred >= images.min(axis=(2, 3), keepdims=True)).all()
    assert (blurred <= images.max(axis=(2, 3), keepdims=True)).all()


@some
@given(
    SEEDS,
    st.tuples(BATCHES, st.integers(1, 3), *[st.integers(1, 5)] * 2),
    st.lists(st.floats(0, 1), min_size=1, max_size=5).map(sorted),
    st.integers(1, 5),
)
def test_what_is_removed_from_the_images_is_what_insertion_shows(
    seed: int, shape: tuple[int, int, int, int], shares: list[float], batch_size: int
) -> None:
    rng = np.random.default_rng(seed)
    images, reference = rng.integers(0, 256, (2, *shape), np.uint8)
    order = np.array([rng.permutation(shape[2] * shape[3]) for _ in images])

    def means(shown: np.ndarray) -> np.ndarray:
        assert len(shown) <= batch_size
        return shown.mean(axis=(2, 3))

    removal, insertion = metrics.perturbation_curves(
        means, images, reference, order, shares, batch_size=batch_size
    )
    assert removal.shape == insertion.shape == (len(shares), *shape[:2])
    both = images.mean(axis=(2, 3)) + reference.mean(axis=(2, 3))
    assert abs(removal + insertion - both).max() <= 1e-9
    assert (min(images.min(), reference.min()) <= removal).all()
    assert (removal <= max(images.max(), reference.max())).all()


# ------------------------------------------------------------------------------------------------------------
# PPO


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """float64 rewards, values and ends (T, N), next value (N,)."""
    steps, envs = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    magnitudes = torch.tensor([draw(st.sampled_from([0, 1e-6, 1, 1e6])) for _ in range(2)])
    noise = torch.randn(2, steps + 1, envs, dtype=torch.float64, generator=generator)
    rewards, values = noise * magnitudes[:, None, None]
    ends = torch.rand(steps, envs, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))
    return rewards[:-1], values[:-1], ends.double(), values[-1]


@some
@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_sums_that_define_them(
    played: tuple[Tensor, ...], gamma: float, gae_lambda: float
) -> None:
    rewards, values, ends, next_value = played
    after = torch.cat([values[1:], next_value[None]])
    errors = rewards + gamma * (1 - ends) * after - values
    expected = torch.zeros_like(rewards)
    for start in range(len(rewards)):
        reached = torch.cat([torch.ones_like(rewards[:1]), (1 - ends)[start:-1]]).cumprod(dim=0)
        powers = (gamma * gae_lambda) ** torch.arange(len(reached), dtype=torch.float64)
        expected[start] = (powers[:, None] * reached * errors[start:]).sum(dim=0)
    advantages, returns = ppo.gae(*played, gamma, gae_lambda)
    scale = max(1.0, float(errors.abs().max()))
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(returns, expected + values, rtol=0, atol=1e-12 * scale)
    single, _ = ppo.gae(*(tensor.float() for tensor in played), gamma, gae_lambda)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4 * scale)


@some
@given(rollouts(), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_nothing_leaks_over_the_end_of_an_episode(
    played: tuple[Tensor, ...], cut: int, gamma: float, gae_lambda: float
) -> None:
    rewards, values, ends, next_value = (tensor.clone() for tensor in played)
    cut = min(cut, len(rewards))
    ends[cut - 1] = 1
    before, _ = ppo.gae(rewards, values, ends, next_value, gamma, gae_lambda)
    for tensor in (rewards, values):
        tensor[cut:] = 1e6 - tensor[cut:]
    after, _ = ppo.gae(rewards, values, ends, 1e6 - next_value, gamma, gae_lambda)
    assert torch.equal(before[:cut], after[:cut])


@many
@given(st.lists(st.floats(-5, 5) | st.floats(-1e4, 1e4) | st.just(-np.inf), max_size=7), st.floats(-1e4, 1e4))
def test_actions_are_drawn_as_often_as_they_are_likely(others: list[float], last: float) -> None:
    row = np.array([*others, last], np.float32)
    chances = np.append(np.arange(256) / 256, LARGEST_CHANCE).astype(np.float32)
    drawn = ppo.sample(np.tile(row, (len(chances), 1)), chances)
    assert (np.diff(drawn) >= 0).all()
    likely = np.exp(row - row.max())
    assert (likely[drawn] > 0).all()
    counts = np.bincount(drawn[:-1], minlength=len(row))
    assert len(counts) == len(row)
    assert (abs(counts - 256 * likely / likely.sum(dtype=np.float64)) <= 1.001).all()


@some
@given(SEEDS, SHAPES, st.sampled_from([0, 1e-6, 1, 1e6]), st.sampled_from(["clip", "scale", "raw"]))
def test_rewards_keep_their_shape_and_order(
    seed: int, shape: tuple[int, ...], magnitude: float, how: str
) -> None:
    raw = np.random.default_rng(seed).standard_cauchy(shape) * magnitude
    rewards = ppo.shape_rewards(raw, how, 0.01)
    assert rewards.shape == shape
    assert np.isfinite(rewards).all()
    assert (np.diff(rewards.ravel()[np.argsort(raw, axis=None)]) >= 0).all()
    assert (np.sign(rewards) == np.sign(raw)).all()
    assert how != "clip" or abs(rewards).max() <= 1


# ------------------------------------------------------------------------------------------------------------
# Frames


def overlaps(length: int, size: int) -> np.ndarray:
    """What a new pixel covers of an old one, in units of 1 / size of an old one: whole numbers (s, l)."""
    new, old = np.arange(size)[:, None], np.arange(length)
    shared = np.minimum((new + 1) * length, (old + 1) * size) - np.maximum(new * length, old * size)
    return shared.clip(min=0)


@many
@given(
    SEEDS,
    st.tuples(*[st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted)] * 2),
    st.sampled_from([[0], [255], [0, 255], [254, 255], range(256)]),
)
def test_a_shrunk_frame_is_the_exact_average_to_rounding(
    seed: int, sides: tuple[list[int], list[int]], colours: list[int]
) -> None:
    size, source = zip(*sides, strict=True)
    frame = np.random.default_rng(seed).choice(np.array(colours, np.uint8), source)
    shrunk = np.array(frames.shrinking(source, size)(frame), np.int64)
    assert (frame.min() <= shrunk).all()
    assert (shrunk <= frame.max()).all()
    area = source[0] * source[1]  # of a new pixel, in units of 1 / area of an old one
    sums = overlaps(source[0], size[0]) @ frame.astype(np.int64) @ overlaps(source[1], size[1]).T
    assert (abs(shrunk * area - sums) <= area / 2 * (1 + 1e-4)).all()  # OpenCV's sums are rounded
    assert abs(shrunk.mean() - frame.mean()) <= 0.5001


# ------------------------------------------------------------------------------------------------------------
# Statistics


def assert_ordered(result: stats.Interval | stats.Band, around: bool) -> None:
    """Finite and ascending, or a reason; whether the estimate must lie in between."""
    assert np.isfinite(result.estimate).all()
    assert (result.low is None) == (result.high is None) == (result.reason is not None)
    if result.reason is None:
        points = [result.low, result.estimate, result.high] if around else [result.low, result.high]
        rounding = 1e-12 * np.abs(points).max()
        assert (np.diff(points, axis=0) >= -rounding).all()
        assert np.isfinite(points).all()


PAIRS = st.integers(1, 4).flatmap(lambda environments: st.tuples(scores(environments), scores(environments)))


@few
@given(PAIRS, SEEDS)
def test_intervals_are_finite_and_ordered(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    x_RE, y_RE = pair  # noqa: N806
    for name, interval in stats.sbci({"x": x_RE}, 50, seed)["x"].items():
        # A median or a trimmed mean can be biased so much that its interval does not hold the estimate.
        assert_ordered(interval, around=name in ("mean", "optimality_gap"))
    assert_ordered(stats.mean_band(x_RE, 50, seed), around=True)
    profile = stats.performance_profile(x_RE, np.append(y_RE, [-np.inf, np.inf]), 50, seed)
    assert_ordered(profile, around=False)
    assert_in_unit_interval(profile.estimate)

    over, under = stats.poi(x_RE, y_RE, 50, seed), stats.poi(y_RE, x_RE, 50, seed)
    assert over.estimate + under.estimate == pytest.approx(1, abs=1e-12)
    for improvement in (over, under):
        assert_ordered(improvement, around=True)
        known = [improvement.estimate, improvement.low, improvement.high]
        assert_in_unit_interval([one for one in known if one is not None])
        assert (stats.verdict(improvement) == "undefined") == (improvement.reason is not None)


@few
@given(st.integers(1, 20), SEEDS, st.sampled_from([0, 5e-324, 1e-300, 1, 1.7e308]), st.booleans())
def test_a_p_value_is_one_of_any_scores(trials: int, seed: int, scale: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-2, 3, (2, trials)) / 2 if ties else rng.uniform(-1, 1, (2, trials))) * scale
    greater, less = stats.wilcoxon(x, y), stats.wilcoxon(y, x)
    assert 0 < greater <= 1
    assert 0 < less <= 1
    assert greater + less >= 1 - 1e-9  # what is seen counts for both


RETURNS = st.sampled_from([-np.inf, -1e300, -1.0, 0.0, 1.0, 1e300, np.inf, np.nan])


@some
@given(SEEDS, SHAPES, RETURNS, RETURNS)
def test_scores_are_normalised_to_finite_numbers_or_refused(
    seed: int, shape: tuple[int, ...], random: float, reference: float
) -> None:
    returns = np.random.default_rng(seed).normal(size=shape)
    if np.isfinite([random, reference]).all() and random < reference:
        assert stats.normalize(np.array([random, reference]), random, reference).tolist() == [0, 1]
        assert np.isfinite(stats.normalize(returns, random, reference)).all()
    else:
        with pytest.raises(ValueError, match="has to be above the random one"):
            stats.normalize(returns, random, reference)


# ------------------------------------------------------------------------------------------------------------
# Shapes that do not fit

FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    **{
        name: getattr(metrics, name)
        for name in ("iou", "iou_sweep", "pointing_game", "relevance_mass", "roc_auc", "alignment")
    },
    "area": metrics.area,
    "rank_correlation": metrics.rank_correlation,
    "pixel_order": lambda heat, _: metrics.pixel_order(heat, np.random.default_rng(0)),
    "blur": lambda _, mask: metrics.blur(mask, 1.0),
    "mask_weights": lambda _, mask: mask_weights(mask, (2, 3)),
    "camal_loss": lambda heat, mask: camal.camal_loss(torch.from_numpy(heat), torch.from_numpy(mask)),
    "projected_loss": lambda heat, mask: camal.projected_loss(torch.from_numpy(heat), torch.from_numpy(mask)),
    "wilcoxon": stats.wilcoxon,
    "poi": lambda heat, mask: stats.poi(heat, mask, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(SEEDS, SHAPES, SHAPES, st.integers(0, 4))
def test_shapes_that_do_not_fit_are_refused_as_documented(
    name: str, seed: int, shape: tuple[int, ...], other: tuple[int, ...], shared: int
) -> None:
    rng = np.random.default_rng(seed)
    heat = rng.random(shape, np.float32)
    mask = rng.integers(0, 2, shape[:shared] + other[shared:], np.uint8)
    try:
        result = FUNCTIONS[name](heat, mask)
    except ValueError as refusal:
        result = str(refusal)
    if isinstance(result, str):
        assert any(given in result for given in (str(heat.shape), str(mask.shape), "environments"))
