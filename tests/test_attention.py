"""Class activation maps against hand-computed numbers, finite differences and per-sample backward passes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from camal_rl import attention
from camal_rl.attention import (
    METHODS,
    class_activation_map,
    closed_form_map,
    contrast,
    gradient_to_map,
    is_dead,
    normalize,
    pooled_weight,
    upsample,
)
from camal_rl.camal import camal_loss

ONE_BACKWARD = ("gradcam", "layercam", "hirescam", "diffgradcam")


class CleanRLNetwork(nn.Module):
    """CleanRL's Atari agent at any width and frame size; `maps` is its last convolution after the ReLU."""

    def __init__(self, frame: int, channels: tuple[int, int, int], features: int, actions: int = 4) -> None:
        super().__init__()
        first, second, third = channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(4, first, 8, 4), nn.ReLU(), nn.Conv2d(first, second, 4, 2), nn.ReLU(),
            nn.Conv2d(second, third, 3, 1), nn.ReLU(),
        )  # fmt: skip
        side = ((frame - 8) // 4 + 1 - 4) // 2 - 1
        self.shape = (third, side, side)
        self.fc = nn.Linear(third * side * side, features)
        self.critic = nn.Linear(features, 1)
        self.actor = nn.Linear(features, actions)

    def maps(self, frames: Tensor) -> Tensor:
        maps: Tensor = self.convolutions(frames)
        return maps

    def hidden(self, maps: Tensor) -> Tensor:
        return torch.relu(self.fc(maps.flatten(1)))

    def value(self, maps: Tensor) -> Tensor:
        value: Tensor = self.critic(self.hidden(maps))
        return value.squeeze(1)

    def logits(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.actor(self.hidden(maps))
        return logits


class SmoothNetwork(nn.Module):
    """A small float64 CNN whose head has curvature, so that the weights of the map have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, dtype=torch.float64)
        self.fc = nn.Linear(3 * 4 * 4, 6, dtype=torch.float64)
        self.head = nn.Linear(6, 3, dtype=torch.float64)

    def maps(self, frames: Tensor) -> Tensor:
        return torch.relu(self.convolution(frames))

    def logits(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.fc(maps.flatten(1))))
        return logits

    def target(self, method: str) -> Callable[[Tensor], Tensor]:
        return self.logits if method == "diffgradcam" else lambda maps: self.logits(maps)[:, 1]


@pytest.fixture
def network() -> SmoothNetwork:
    torch.manual_seed(0)
    return SmoothNetwork()


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference against the largest magnitude: a zero must be matched by a zero."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def parameter_gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, gradients, strict=True))


# Two channels of 2x2 and a linear target, so that dy/dA is the coefficients themselves.
MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]], dtype=torch.float64)
COEFFICIENTS = torch.tensor([[[[4.0, 0.0], [0.0, 4.0]], [[0.0, -8.0], [0.0, 4.0]]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # w = (2, -1): [2 - 4, 4 - 3, 6 - 2, 8 - 1] / 2, negative -> 0
        ("gradcam", [[0.0, 0.5], [2.0, 3.5]]),
        # the same, negative -> positive
        ("magnitude", [[1.0, 0.5], [2.0, 3.5]]),
        # positive gradients only: [4, 0, 0, 16 + 4] / 2
        ("layercam", [[2.0, 0.0], [0.0, 10.0]]),
        # all gradients: [4, -24, 0, 16 + 4] / 2, negative -> 0
        ("hirescam", [[2.0, 0.0], [0.0, 10.0]]),
        # a linear target has the same gradient anywhere on the path
        ("integrated-gradients", [[2.0, 0.0], [0.0, 10.0]]),
        ("smoothgrad", [[2.0, 0.0], [0.0, 10.0]]),
    ],
)
def test_map_of_a_linear_target_is_the_hand_computed_one(method: str, expected: list[list[float]]) -> None:
    cam = class_activation_map(
        MAPS, lambda maps: (maps * COEFFICIENTS).sum(dim=(1, 2, 3)), method, generator=seeded()
    )
    assert cam[0].tolist() == expected


def test_layercam_drops_negative_gradients_before_the_mean_and_hirescam_after() -> None:
    maps = torch.ones(1, 2, 1, 1)
    gradients = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    assert gradient_to_map(maps, gradients, "layercam").item() == 1.5
    assert gradient_to_map(maps, gradients, "hirescam").item() == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_one_backward_pass_on_the_sum_equals_one_per_sample(
    method: str, network: SmoothNetwork, frames: Tensor
) -> None:
    coefficients = torch.randn(5, 4, 4, dtype=torch.float64, generator=seeded())
    cams, gradients = [], []
    for per_sample in (False, True):
        cam = class_activation_map(
            network.maps(frames),
            network.target(method),
            method,
            per_sample=per_sample,
            samples=3,
            generator=seeded(),
        )
        cams.append(cam)
        gradients.append(parameter_gradients((normalize(cam) * coefficients).sum(), network))
    assert cams[0].max() > 0
    assert_relative(cams[0], cams[1], 1e-12)
    for name, gradient in gradients[0].items():
        assert_relative(gradient, gradients[1][name], 1e-12)
    assert all(
        gradients[0][name].abs().max() > 0 for name in ("convolution.weight", "fc.weight", "head.weight")
    )


@pytest.mark.parametrize("method", ONE_BACKWARD)
def test_a_tensor_target_gives_the_map_of_the_function_that_made_it(
    method: str, network: SmoothNetwork, frames: Tensor
) -> None:
    maps = network.maps(frames)
    target = network.target(method)
    from_tensor = class_activation_map(maps, target(maps), method)
    from_function = class_activation_map(maps, target, method)
    assert torch.equal(from_tensor, from_function)
    for name, gradient in parameter_gradients(from_tensor.sum(), network).items():
        assert torch.equal(gradient, parameter_gradients(from_function.sum(), network)[name])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_through_maps_and_weights_match_finite_differences(
    method: str, network: SmoothNetwork, frames: Tensor
) -> None:
    maps = network.maps(frames[:2]).detach() + 0.1

    def cam(maps: Tensor, fc_weight: Tensor, head_weight: Tensor) -> Tensor:
        def logits(maps: Tensor) -> Tensor:
            return torch.tanh(maps.flatten(1) @ fc_weight.T) @ head_weight.T

        target = logits if method == "diffgradcam" else lambda maps: logits(maps)[:, 1]
        return class_activation_map(maps, target, method, samples=2, generator=seeded())

    # smoothgrad holds its noise level fixed, which finite differences in A would move.
    maps.requires_grad_(method != "smoothgrad")
    assert cam(maps, network.fc.weight, network.head.weight).max() > 0
    assert torch.autograd.gradcheck(cam, (maps, network.fc.weight, network.head.weight))


@pytest.mark.parametrize("method", ["gradcam", "magnitude"])
@pytest.mark.parametrize(
    ("frame", "channels", "features"), [(52, (3, 4, 5), 16), (84, (32, 64, 64), 512)], ids=["small", "84x84"]
)
def test_closed_form_equals_double_backward_on_cleanrl_critic(
    method: str, frame: int, channels: tuple[int, int, int], features: int
) -> None:
    torch.manual_seed(0)
    network = CleanRLNetwork(frame, channels, features).double()
    images = torch.rand(4, 4, frame, frame, dtype=torch.float64)
    mask = torch.rand(4, frame, frame + 3) < 0.2
    maps = network.maps(images)
    hidden = network.hidden(maps)
    columns = network.fc.weight.unflatten(1, network.shape).movedim(1, -1).flatten(1)
    forms = []
    for weight, channels_last in ((network.fc.weight, False), (columns, True)):
        pooled = pooled_weight(weight, network.shape, channels_last)
        forms.append(closed_form_map(maps, hidden, pooled, network.critic.weight, method == "magnitude"))
    closed, reordered = forms
    assert_relative(reordered, closed, 1e-12)
    general = class_activation_map(maps, network.critic(hidden).squeeze(1), method)
    assert not is_dead(general).any()
    assert_relative(closed, general, 1e-10)

    losses = [camal_loss(normalize(cam), mask) for cam in (closed, general)]
    assert_relative(losses[0], losses[1], 1e-10)
    expected = parameter_gradients(losses[1], network)
    for name, gradient in parameter_gradients(losses[0], network).items():
        assert_relative(gradient, expected[name], 1e-10)
    reached = {name for name, gradient in expected.items() if gradient.abs().max() > 0}
    convolutions = {name for name in expected if name.startswith("convolutions")}
    assert reached == convolutions | {"fc.weight", "critic.weight"}


@pytest.mark.parametrize("rows", [(6,), (1, 6), (2, 6)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_map_in_closed_form_is_eq_3_however_maps_lie_in_memory(
    rows: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    draw = partial(torch.randn, dtype=torch.float64, generator=seeded())
    maps, pooled, out_weight = draw(2, 3, 4, 5).relu(), draw(6, 3), draw(rows)
    hidden = draw(2, 6).relu()
    leaves = [maps.contiguous(memory_format=memory_format), pooled, out_weight]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = ((hidden > 0) * out_weight) @ pooled  # (B, K)
    expected = (weights[:, :, None, None] * leaves[0]).mean(dim=1).relu()
    assert (expected > 0).any(dim=2).any(dim=1).all()
    assert (expected == 0).any()
    cam = closed_form_map(leaves[0], hidden, pooled, out_weight)
    assert_relative(cam, expected, 1e-14)
    upstream = draw(2, 4, 5)
    for mine, theirs in zip(
        torch.autograd.grad((cam * upstream).sum(), leaves),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        assert theirs.abs().max() > 0
        assert_relative(mine, theirs, 1e-13)


@pytest.mark.parametrize("magnitude", [False, True])
def test_the_map_in_closed_form_has_the_gradients_of_finite_differences(magnitude: bool) -> None:
    draw = partial(torch.rand, dtype=torch.float64, generator=seeded())
    maps, pooled, out_weight = draw(2, 3, 4, 5), draw(6, 3) - 0.3, draw(6) - 0.3
    for leaf in (maps, pooled, out_weight):
        leaf.requires_grad_()
    hidden = (draw(2, 6) - 0.5).relu()
    assert torch.autograd.gradcheck(
        lambda *leaves: closed_form_map(leaves[0], hidden, *leaves[1:], magnitude), (maps, pooled, out_weight)
    )


def test_the_map_in_closed_form_takes_maps_of_less_precision() -> None:
    maps = torch.rand(2, 3, 4, 5, generator=seeded()).bfloat16().requires_grad_()
    hidden, pooled, out_weight = torch.ones(2, 6), torch.rand(6, 3, generator=seeded()), torch.rand(6)
    cam = closed_form_map(maps, hidden, pooled, out_weight)
    assert cam.dtype == torch.float32
    exact = maps.detach().float().requires_grad_()
    expected = closed_form_map(exact, hidden, pooled, out_weight)
    assert torch.equal(cam, expected)
    (gradient,) = torch.autograd.grad(cam.sum(), maps)
    (exact_gradient,) = torch.autograd.grad(expected.sum(), exact)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, exact_gradient.bfloat16())


def test_closed_form_takes_a_row_per_sample_for_a_contrast_of_actor_logits() -> None:
    torch.manual_seed(0)
    network = CleanRLNetwork(52, (3, 4, 5), 16).double()
    maps = network.maps(torch.rand(4, 4, 52, 52, dtype=torch.float64))
    hidden = network.hidden(maps)
    logits = network.actor(hidden)
    classes = torch.tensor([0, 3, 1, 2])
    (coefficients,) = torch.autograd.grad(
        contrast(logits, classes).sum(), logits, create_graph=True
    )  # (B, C)
    rows = coefficients @ network.actor.weight  # (B, F)
    closed = closed_form_map(maps, hidden, pooled_weight(network.fc.weight, network.shape), rows)
    general = class_activation_map(maps, logits, "diffgradcam", classes=classes)
    assert general.max() > 0
    assert_relative(closed, general, 1e-10)
    expected = parameter_gradients(general.square().sum(), network)
    for name, gradient in parameter_gradients(closed.square().sum(), network).items():
        assert_relative(gradient, expected[name], 1e-10)


@pytest.mark.parametrize("steps", [1, 4])
def test_integrated_gradients_of_a_cubic_have_the_known_error_of_the_midpoint_rule(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=seeded())

    def cubic(maps: Tensor) -> Tensor:
        return maps.pow(3).sum(dim=(1, 2, 3))

    monkeypatch.setattr(attention, "gradient_to_map", lambda maps, gradients, method: gradients)
    gradient = class_activation_map(maps, cubic, "integrated-gradients", create_graph=False, samples=steps)
    attribution = (maps * gradient).sum(dim=(1, 2, 3))
    assert_relative(attribution, cubic(maps) * (1 - 1 / (4 * steps**2)), 1e-14)


def test_integrated_gradients_add_up_to_the_change_of_the_target(
    network: SmoothNetwork, frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "gradient_to_map", lambda maps, gradients, method: gradients)
    maps = network.maps(frames).detach()
    target = network.target("integrated-gradients")
    change = (target(maps) - target(torch.zeros_like(maps))).detach()
    errors = []
    for steps in (16, 64):
        gradient = class_activation_map(
            maps, target, "integrated-gradients", create_graph=False, samples=steps
        )
        errors.append(((maps * gradient).sum(dim=(1, 2, 3)) - change).abs().max().item())
    assert errors[1] < 1e-4 * change.abs().max()
    assert 15 < errors[0] / errors[1] < 17  # second order: four times the steps, a sixteenth of the error


def test_smoothgrad_without_noise_is_hirescam(network: SmoothNetwork, frames: Tensor) -> None:
    maps, target = network.maps(frames), network.target("smoothgrad")
    smooth = class_activation_map(maps, target, "smoothgrad", noise=0.0, samples=4)
    assert torch.equal(smooth, class_activation_map(maps, target, "hirescam"))


def test_smoothgrad_noise_is_a_fraction_of_each_samples_own_range() -> None:
    maps = torch.tensor([[[[0.0, 1.0]]], [[[5.0, 15.0]]]], requires_grad=True)
    point = next(attention._points(maps, "smoothgrad", 1, 0.5, seeded()))
    draw = torch.randn(maps.shape, generator=seeded())
    assert torch.equal(point, maps + torch.tensor([0.5, 5.0]).view(2, 1, 1, 1) * draw)
    (gradient,) = torch.autograd.grad(point.sum(), maps)
    assert torch.equal(gradient, torch.ones_like(maps))  # the noise itself is a constant


def test_diffgradcam_of_two_classes_is_gradcam_of_the_difference_of_logits(
    network: SmoothNetwork, frames: Tensor
) -> None:
    maps = network.maps(frames)
    logits = network.logits(maps)[:, :2]
    classes = torch.tensor([0, 1, 1, 0, 1])
    difference = (logits[:, 0] - logits[:, 1]) * (1 - 2 * classes)
    cam = class_activation_map(maps, logits, "diffgradcam", classes=classes)
    assert_relative(cam, class_activation_map(maps, difference, "gradcam"), 1e-14)


def test_diffgradcam_contrasts_the_largest_logit_unless_told_otherwise(
    network: SmoothNetwork, frames: Tensor
) -> None:
    maps = network.maps(frames)
    logits = network.logits(maps)
    default = class_activation_map(maps, logits, "diffgradcam")
    assert default.max() > 0
    assert torch.equal(
        default, class_activation_map(maps, logits, "diffgradcam", classes=logits.argmax(dim=1))
    )
    assert not torch.equal(
        default, class_activation_map(maps, logits, "diffgradcam", classes=logits.argmin(dim=1))
    )


def test_contrast_is_the_log_odds_of_the_softmax_and_ignores_a_shift_of_all_logits() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=seeded(), requires_grad=True)
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    probability = logits.softmax(dim=1)[torch.arange(6), classes]
    assert_relative(contrast(logits, classes), torch.log(probability / (1 - probability)), 1e-14)
    assert_relative(contrast(logits + 100, classes), contrast(logits, classes), 1e-12)
    assert torch.autograd.gradcheck(lambda logits: contrast(logits, classes), logits)
    assert torch.autograd.gradgradcheck(lambda logits: contrast(logits, classes), logits)


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_extraction_leaves_no_trace(
    method: str, create_graph: bool, network: SmoothNetwork, frames: Tensor
) -> None:
    network.eval()
    network.fc.weight.requires_grad_(False)
    network.head.weight.grad = torch.ones_like(network.head.weight)
    modes = [module.training for module in network.modules()]
    maps = network.maps(frames)
    value = network.logits(maps)[:, 0].sum()
    target = network.target(method)
    random_state = torch.get_rng_state()
    class_activation_map(maps, target, method, create_graph=create_graph, samples=2, generator=seeded())
    if method in ONE_BACKWARD:
        class_activation_map(maps, target(maps), method, create_graph=create_graph)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (name != "fc.weight")
        assert parameter.grad is None or name == "head.weight"
    assert torch.equal(network.head.weight.grad, torch.ones_like(network.head.weight))
    (gradient,) = torch.autograd.grad(value, network.convolution.weight)  # the caller's graph was not freed
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("method", ONE_BACKWARD)
def test_a_detached_map_leaves_the_graph_of_a_tensor_target_to_the_caller(
    method: str, network: SmoothNetwork, frames: Tensor
) -> None:
    maps = network.maps(frames)
    target = network.target(method)(maps)
    with torch.no_grad():
        cam = class_activation_map(maps, target, method, create_graph=False)
    assert not cam.requires_grad
    assert_relative(cam, class_activation_map(maps, target, method).detach(), 1e-14)
    (gradient,) = torch.autograd.grad(target.sum(), network.convolution.weight)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_function_target_works_without_gradients_in_the_caller(
    method: str, create_graph: bool, network: SmoothNetwork, frames: Tensor
) -> None:
    with torch.no_grad():
        maps = network.maps(frames)
        cam = class_activation_map(
            maps, network.target(method), method, create_graph=create_graph, generator=seeded()
        )
    assert not cam.requires_grad
    assert not maps.requires_grad
    expected = class_activation_map(network.maps(frames), network.target(method), method, generator=seeded())
    assert_relative(cam, expected.detach(), 1e-14)


def test_maps_without_gradient_let_it_reach_the_head_only(network: SmoothNetwork, frames: Tensor) -> None:
    maps = network.maps(frames).detach()
    cam = class_activation_map(maps, network.target("gradcam"))
    gradients = parameter_gradients(cam.sum(), network)
    reached = {name for name, gradient in gradients.items() if gradient.abs().max() > 0}
    assert reached == {"fc.weight", "fc.bias", "head.weight"}


def test_normalize_stretches_each_map_to_the_unit_interval() -> None:
    cam = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 1e-9]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert torch.equal(normalize(cam), expected)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e30])
def test_a_constant_map_normalizes_to_zeros_with_zero_gradient(value: float) -> None:
    cam = torch.full((2, 3, 3), value)
    cam[1, 0, 0] += value + 1
    cam.requires_grad_()
    heat = normalize(cam)
    assert torch.equal(heat[0], torch.zeros(3, 3))
    assert heat[1].max() == 1
    (gradient,) = torch.autograd.grad((heat * torch.rand(2, 3, 3, generator=seeded())).sum(), cam)
    assert torch.equal(gradient[0], torch.zeros(3, 3))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("span", [1e-45, 1e-30, 1e-18, 2e-18, 1e-10])
def test_the_faintest_maps_normalize_with_finite_gradients(span: float) -> None:
    cam = torch.zeros(1, 50, 50)
    cam[0, 3, 4] = span
    cam.requires_grad_()
    heat = normalize(cam)
    assert heat.max() == (1 if span > 1.5e-18 else 0)
    (gradient,) = torch.autograd.grad((heat - heat.square()).sum() + heat.mean(), cam)
    assert gradient.isfinite().all()


def test_normalize_does_not_hide_a_diverged_map() -> None:
    assert normalize(torch.full((1, 2, 2), float("nan"))).isnan().all()


def test_normalize_is_differentiable_through_both_extremes() -> None:
    cam = torch.rand(3, 3, 4, dtype=torch.float64, generator=seeded(), requires_grad=True)
    assert torch.autograd.gradcheck(normalize, cam)


def test_a_magnitude_is_alive_where_all_evidence_is_against_a_high_value() -> None:
    def against(maps: Tensor) -> Tensor:
        return -(maps * COEFFICIENTS.abs()).sum(dim=(1, 2, 3))

    dead, alive = (is_dead(class_activation_map(MAPS, against, name)) for name in ("gradcam", "magnitude"))
    assert dead
    assert not alive


def test_a_map_is_dead_where_the_relu_left_nothing() -> None:
    cam = torch.tensor([[[0.0, 0.0]], [[0.0, 1e-30]], [[2.0, 2.0]]])
    assert is_dead(cam).tolist() == [True, False, False]
    negative = class_activation_map(MAPS, lambda maps: -maps.sum(dim=(1, 2, 3)))
    assert is_dead(negative).tolist() == [True]


def test_upsample_is_bilinear_with_half_pixel_centres() -> None:
    heat = torch.tensor([[[0.0, 1.0]]])
    assert upsample(heat, (2, 4)).tolist() == [[[0.0, 0.25, 0.75, 1.0]] * 2]


def total(maps: Tensor) -> Tensor:
    return maps.sum(dim=(1, 2, 3))


@pytest.mark.parametrize("method", ["smoothgrad", "integrated-gradients"])
def test_resampling_methods_ask_for_a_function(method: str) -> None:
    maps = MAPS.clone().requires_grad_()
    with pytest.raises(
        ValueError, match=rf"'{method}' .* pass a function feature_maps -> \(B,\), got a tensor"
    ):
        class_activation_map(maps, total(maps), method)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        class_activation_map(maps, total, method, samples=0)


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_target_that_does_not_depend_on_the_maps_is_refused(per_sample: bool) -> None:
    maps = MAPS.clone().requires_grad_()
    other = MAPS.clone().requires_grad_()
    for target in (total(other), total(maps.detach()), lambda maps: total(other)):
        with pytest.raises(ValueError, match="target does not depend on feature_maps: compute it from this"):
            class_activation_map(maps, target, per_sample=per_sample)
    with pytest.raises(ValueError, match="target does not depend on feature_maps"):
        class_activation_map(MAPS, total(maps), per_sample=per_sample)


def test_inputs_that_do_not_fit_are_refused_with_what_is_valid() -> None:
    maps = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = maps.mean(dim=(2, 3))  # (2, 3)
    with pytest.raises(ValueError, match="unknown attention method 'cam'; valid: gradcam, magnitude"):
        class_activation_map(maps, logits[:, 0], "cam")
    with pytest.raises(ValueError, match=r"shape \(B, K, h, w\), got torch.float32 of shape \(3, 4, 4\)"):
        class_activation_map(maps[0], logits[:, 0])
    with pytest.raises(ValueError, match=r"got torch.int64 of shape \(2, 3, 4, 4\)"):
        class_activation_map(maps.long(), logits[:, 0])
    with pytest.raises(ValueError, match=r"one scalar a sample, shape \(2,\), got \(2, 3\)"):
        class_activation_map(maps, logits)
    with pytest.raises(ValueError, match=r"got shape \(2,\): a single scalar has nothing to be contrasted"):
        class_activation_map(maps, logits[:, 0], "diffgradcam")
    with pytest.raises(ValueError, match=r"at least two classes, .* got shape \(2, 1\)"):
        class_activation_map(maps, logits[:, :1], "diffgradcam")
    with pytest.raises(ValueError, match="classes is for method 'diffgradcam' only, got method 'gradcam'"):
        class_activation_map(maps, logits[:, 0], classes=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"classes must be int64 of shape \(2,\), got torch.float32"):
        contrast(logits, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\), got \(2, 3\)"):
        gradient_to_map(maps, torch.rand(2, 3), "gradcam")
    with pytest.raises(ValueError, match=r"pooled \(F, 3\) do not fit: got \(2, 5\) and \(5, 4\)"):
        closed_form_map(maps, torch.rand(2, 5), torch.rand(5, 4), torch.rand(5))
    with pytest.raises(ValueError, match=r"shape \(5,\), \(1, 5\) or \(2, 5\), got \(2, 1\)"):
        closed_form_map(maps, torch.rand(2, 5), torch.rand(5, 3), torch.rand(2, 1))


# ------------------------------------------------------------------------------- number types and networks


def integration(channels: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The README's lines in a wide network, under autocast but for float32: heat, and the gradients."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
    head = nn.Linear(channels, 10)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        feature_maps = body(torch.rand(4, 3, 32, 32, generator=seeded()))
        logits = head(feature_maps.mean(dim=(2, 3)))
        heat = normalize(class_activation_map(feature_maps, logits[:, 3]))
        loss = camal_loss(heat, (torch.arange(32) < 10).expand(4, 32, 32))
    loss.backward()
    weights = (*body.parameters(), head.weight)
    return heat.detach(), [weight.grad for weight in weights if weight.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [512, 2048])
def test_maps_losses_and_gradients_of_half_precision_are_those_of_float32(
    channels: int, dtype: torch.dtype
) -> None:
    exact, exact_gradients = integration(channels, torch.float32)
    heat, gradients = integration(channels, dtype)
    assert heat.dtype == torch.float32
    assert (heat - exact).abs().max() < 0.02
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert_relative(gradient, exact_gradient, 0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_maps_are_float32_at_least(method: str, given: torch.dtype, expected: torch.dtype) -> None:
    weight = torch.rand(3, 5, generator=seeded()).to(given)
    maps = torch.rand(2, 3, 4, 4, generator=seeded()).to(given).requires_grad_()
    cam = class_activation_map(
        maps,
        lambda a: (a.mean(dim=(2, 3)) @ weight)[:, 0 if method != "diffgradcam" else slice(None)],
        method,
    )
    assert cam.dtype == normalize(cam.to(given)).dtype == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_closed_form_is_not_reached_by_autocast(dtype: torch.dtype) -> None:
    hidden, fc_weight = torch.rand(2, 5, generator=seeded()) - 0.3, torch.rand(5, 12, generator=seeded())
    maps, out_weight = torch.rand(2, 3, 2, 2, generator=seeded()), torch.rand(5, generator=seeded())

    def cam() -> Tensor:
        return closed_form_map(maps, hidden, pooled_weight(fc_weight, (3, 2, 2)), out_weight)

    exact = cam()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(cam(), exact)


class SelfAttention(nn.Module):
    """A head whose attention runs on scaled_dot_product_attention, as torchvision's ViT does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).movedim(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.sum(dim=(1, 2))


def test_a_function_target_with_fused_attention_can_be_trained() -> None:
    torch.manual_seed(0)
    head, maps = SelfAttention(), torch.rand(2, 8, 3, 3, requires_grad=True)
    class_activation_map(maps, head, "hirescam").sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_a_tensor_target_with_fused_attention_says_what_to_do() -> None:
    torch.manual_seed(0)
    head, maps = SelfAttention(), torch.rand(2, 8, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"fused attention kernel.*SDPBackend\.MATH"):
        class_activation_map(maps, head(maps), "hirescam")
    assert not class_activation_map(maps, head(maps), create_graph=False).requires_grad
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        class_activation_map(maps, head(maps), "hirescam").sum().backward()


def test_maps_without_gradients_for_good_say_how_to_get_them() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with torch.inference_mode():
        maps = layer(torch.rand(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"inference_mode.*no_grad"):
        class_activation_map(maps, total, create_graph=False)
    with torch.no_grad(), pytest.raises(ValueError, match="create_graph=False"):
        class_activation_map(layer(torch.rand(2, 3, 5, 5)), torch.rand(2))
    maps = layer(torch.rand(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"DistributedDataParallel and torch\.compile"):
        class_activation_map(maps, total(maps.detach()))


def test_maps_of_a_single_cell_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="1 x 1"):
        assert normalize(torch.rand(2, 1, 1)).tolist() == [[[0.0]], [[0.0]]]
