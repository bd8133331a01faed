"""Feature maps and a scalar target -> class activation map: Eq. 3, for a whole batch at once by Eq. 4.

A general form by automatic differentiation for any network, and the closed form for CleanRL's critic head.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

METHODS: tuple[str, ...] = (
    "gradcam",
    "magnitude",
    "layercam",
    "hirescam",
    "diffgradcam",
    "smoothgrad",
    "integrated-gradients",
)

POOLED_METHODS = ("gradcam", "magnitude", "diffgradcam")
RESAMPLING_METHODS = ("smoothgrad", "integrated-gradients")
FAINTEST_SPAN = 1e-18  # its square is still a normal float32: the gradient of a division by it is finite
UNCONNECTED = (
    "the target does not depend on feature_maps: compute it from this very tensor (not from a copy, as "
    "DistributedDataParallel and torch.compile may return), with gradients enabled and feature_maps "
    "requiring them; or pass a function feature_maps -> target that uses its argument, under "
    "torch.no_grad() with create_graph=False"
)
INFERENCE = (
    "feature_maps were computed under torch.inference_mode(), without gradients for good: use no_grad()"
)
FUSED = (
    "the target passes through a fused attention kernel, whose gradient has no gradient: compute it within "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), or pass a function feature_maps -> "
    "target"
)


def class_activation_map(
    feature_maps: Tensor,
    target: Tensor | Callable[[Tensor], Tensor],
    method: str = "gradcam",
    *,
    classes: Tensor | None = None,
    create_graph: bool = True,
    per_sample: bool = False,
    samples: int = 16,
    noise: float = 0.15,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attention of a network for `target`, not yet normalised: (B, h, w), non-negative, float32 or more.

    One backward pass on the target summed over the batch serves every sample (Eq. 4, Prop. 1), provided that
    the network treats samples independently (no batch statistics). Under `torch.autocast` a function target
    is evaluated as it says; the map itself never is, because float16 has too small a range.

    Args:
        feature_maps: A, (B, K, h, w), floating point.
        target: y, (B,), computed from this very tensor; or a function feature_maps -> y, which `smoothgrad`
            and `integrated-gradients` need because they evaluate y at other feature maps. For `diffgradcam`
            y is the logits, (B, C).
        method: one of METHODS. `gradcam` (Selvaraju et al. 2017), `magnitude` (the absolute value in place
            of its ReLU, so that evidence against a high y counts as much as evidence for it),
            `layercam` (Jiang et al. 2021), `hirescam` (Draelos and Carin 2020), `diffgradcam` (Piland et al.
            2025, see `contrast`), `smoothgrad` (Smilkov et al. 2017) and `integrated-gradients` (Sundararajan
            et al. 2017, zero baseline, midpoint rule), the last two taken over feature maps instead of
            pixels.
        classes: (B,) int64, the class that `diffgradcam` contrasts; default: the largest logit.
        create_graph: let gradients flow through both A and its weights (Eq. 2). False: a detached map, also
            under `torch.no_grad()`. Where `feature_maps` requires no gradient and `target` is a function,
            gradients reach the parameters inside the function only.
        per_sample: B separate backward passes. Same map; exists to measure what Eq. 4 saves (Figure 2).
        samples: noisy copies (`smoothgrad`) or steps on the path (`integrated-gradients`).
        noise: standard deviation of `smoothgrad`, as a fraction of each sample's max - min of A.
        generator: source of that noise, on the device of A; default: torch's global generator.

    Raises:
        ValueError: an unknown method, shapes that do not fit, or a target that does not depend on A.
    """
    _check_method(method)
    if feature_maps.dim() != 4 or not feature_maps.is_floating_point():
        raise ValueError(
            "feature_maps must be floating point of shape (B, K, h, w), "
            f"got {feature_maps.dtype} of shape {tuple(feature_maps.shape)}"
        )
    if feature_maps.is_inference():
        raise ValueError(INFERENCE)
    if classes is not None and method != "diffgradcam":
        raise ValueError(f"classes is for method 'diffgradcam' only, got method {method!r}")
    resampled = method in RESAMPLING_METHODS
    if resampled and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if resampled and isinstance(target, Tensor):
        raise ValueError(
            f"method {method!r} evaluates the target at other feature maps: "
            "pass a function feature_maps -> (B,), got a tensor"
        )
    with torch.enable_grad():
        if isinstance(target, Tensor):
            scalars = _scalars(target, feature_maps, method, classes)
            gradients = _gradient(scalars, feature_maps, create_graph, per_sample)
        else:
            connected = create_graph and feature_maps.requires_grad
            source = feature_maps if connected else feature_maps.detach().requires_grad_()
            gradients = at_least_float32(torch.zeros_like(feature_maps))
            for point in _points(source, method, samples, noise, generator):
                with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
                    scalars = _scalars(target(point), point, method, classes)
                gradients = gradients + _gradient(scalars, point, create_graph, per_sample)
            gradients = gradients / (samples if resampled else 1)
    return gradient_to_map(feature_maps if create_graph else feature_maps.detach(), gradients, method)


def gradient_to_map(feature_maps: Tensor, gradients: Tensor, method: str) -> Tensor:
    """Last step of every method (Eq. 3): ReLU of the mean over K of weight times feature map, (B, h, w).

    The weight is the gradient dy/dA, (B, K, h, w): averaged over positions for POOLED_METHODS, its positive
    part for `layercam`, as it is for the others. `magnitude` takes the absolute value in place of the ReLU.
    """
    _check_method(method)
    if gradients.shape != feature_maps.shape:
        raise ValueError(
            f"gradients must have shape {tuple(feature_maps.shape)}, got {tuple(gradients.shape)}"
        )
    feature_maps, gradients = at_least_float32(feature_maps), at_least_float32(gradients)
    if method in POOLED_METHODS:
        weights = gradients.mean(dim=(2, 3)) / gradients.shape[1]  # (B, K)
        with without_autocast(weights):
            signed = torch.einsum("bk,bkhw->bhw", weights, feature_maps)
        return signed.abs() if method == "magnitude" else signed.relu()
    if method == "layercam":
        gradients = gradients.relu()
    return (gradients * feature_maps).mean(dim=1).relu()


def contrast(logits: Tensor, classes: Tensor) -> Tensor:
    """y_c - log sum_{j != c} exp y_j: how far class c stands out, (B,), the target of `diffgradcam`.

    Piland et al. (2025, arXiv:2506.08514) replace the target logit by its difference to the other logits,
    because softmax depends on differences only. Summarising the others by log-sum-exp is the choice made
    here: it makes the target log(p_c / (1 - p_c)), which is the plain difference for two classes.

    Args:
        logits: (B, C), C at least 2.
        classes: (B,) int64 in [0, C).
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            "a contrast needs the logits of at least two classes, shape (B, C), got shape "
            f"{tuple(logits.shape)}: a single scalar has nothing to be contrasted with, use 'gradcam' for it"
        )
    if classes.shape != logits.shape[:1] or classes.dtype != torch.int64:
        raise ValueError(
            f"classes must be int64 of shape {tuple(logits.shape[:1])}, "
            f"got {classes.dtype} of shape {tuple(classes.shape)}"
        )
    index = classes.unsqueeze(1)  # (B, 1)
    others = logits.scatter(1, index, float("-inf"))  # (B, C)
    return logits.gather(1, index).squeeze(1) - others.logsumexp(dim=1)


def pooled_weight(fc_weight: Tensor, shape: tuple[int, ...], channels_last: bool = False) -> Tensor:
    """The weight of a Linear layer that takes flattened feature maps, averaged over positions: (F, K).

    Args:
        fc_weight: (F, K * h * w).
        shape: (K, h, w) of the feature maps.
        channels_last: they are flattened as (h, w, K), not as (K, h, w).
    """
    channels, positions = shape[0], shape[1] * shape[2]
    by_channel = (positions, channels) if channels_last else (channels, positions)
    weight = at_least_float32(fc_weight).reshape(-1, *by_channel)
    return weight.sum(dim=1 if channels_last else 2) / positions


def closed_form_map(
    feature_maps: Tensor, hidden: Tensor, pooled: Tensor, out_weight: Tensor, magnitude: bool = False
) -> Tensor:
    """Grad-CAM (Eq. 3) of the head flatten(A) -> Linear -> ReLU -> Linear, (B, h, w), not normalised.

    Pooling the first Linear's weight before it meets the samples makes that almost free. The map's own
    gradients, those of automatic double differentiation, are written out. Through the weights of Eq. 3, which
    are (out_weight * 1[hidden > 0]) fc_weight averaged over positions, they reach the two weights only, for
    the indicator is constant almost everywhere.

    Args:
        feature_maps: A, (B, K, h, w), of any floating point type, best with channels last in memory.
        hidden: (B, F), output of the ReLU.
        pooled: (F, K), from `pooled_weight`. The map is computed in this type.
        out_weight: (F,) or (1, F), weight of the last Linear; or (B, F), one row a sample, where the target
            combines several outputs.
        magnitude: take the absolute value in place of the ReLU, as the method of that name.
    """
    features = hidden.shape[-1]
    if hidden.dim() != 2 or pooled.shape != (features, feature_maps.shape[1]):
        raise ValueError(
            f"hidden (B, F) and pooled (F, {feature_maps.shape[1]}) do not fit: "
            f"got {tuple(hidden.shape)} and {tuple(pooled.shape)}"
        )
    if out_weight.shape not in ((features,), (1, features), hidden.shape):
        raise ValueError(
            f"out_weight must have shape ({features},), (1, {features}) or {tuple(hidden.shape)}, "
            f"got {tuple(out_weight.shape)}"
        )
    apply: Callable[..., Tensor] = _ClosedForm.apply
    with without_autocast(pooled):
        return apply(feature_maps, hidden, pooled, out_weight, magnitude)


class _ClosedForm(torch.autograd.Function):
    """Each map is ReLU(sum_k w[k] A[p, k]), or the magnitude of that sum.

    The weights are w = (out_weight * 1[hidden > 0]) pooled / K.
    """

    @staticmethod
    def forward(
        ctx: Any, feature_maps: Tensor, hidden: Tensor, pooled: Tensor, out_weight: Tensor, magnitude: bool
    ) -> Tensor:
        maps = feature_maps.movedim(1, -1).to(pooled.dtype)  # (B, h, w, K)
        active = hidden.sign().to(pooled.dtype)  # (B, F), of zeros and ones
        if out_weight.shape == active.shape:  # one row a sample
            weights = (active * out_weight) @ (pooled / pooled.shape[1])  # (B, K)
        else:
            weights = active @ (out_weight.reshape(-1, 1) * pooled / pooled.shape[1])  # (B, K)
        signed: Tensor = torch.linalg.vecdot(maps, weights[:, None, None, :])  # (B, h, w)
        slope = signed.sign() if magnitude else (signed > 0).to(signed.dtype)
        ctx.save_for_backward(maps, active, weights, pooled, out_weight, slope)
        ctx.dtype = feature_maps.dtype
        return signed * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        maps, active, weights, pooled, out_weight, slope = ctx.saved_tensors
        gradient = gradient * slope  # (B, h, w)
        to_maps = (gradient[..., None] * weights[:, None, None, :]).to(ctx.dtype).movedim(-1, 1)
        to_weights = torch.bmm(gradient.flatten(1)[:, None], maps.flatten(1, 2)).squeeze(1)  # (B, K)
        to_weights = to_weights / pooled.shape[1]
        if out_weight.shape == active.shape:  # one row a sample
            to_pooled, to_out = (active * out_weight).T @ to_weights, active * (to_weights @ pooled.T)
        else:  # one for all, so a sum over the samples serves both
            by_unit = active.T @ to_weights  # (F, K)
            to_pooled = by_unit * out_weight.reshape(-1, 1)
            to_out = (by_unit * pooled).sum(dim=1).view_as(out_weight)
        return to_maps, None, to_pooled, to_out, None


class ActorCritic(Protocol):
    """A network as attention needs it: the layers behind its feature maps, flattened channels last."""

    fc: nn.Linear
    actor: nn.Linear
    critic: nn.Linear
    map_shape: tuple[int, ...]


class Seen(Protocol):
    """An agent's forward pass, as attention needs it."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def hidden(self) -> Tensor: ...
    @property
    def feature_maps(self) -> Tensor: ...


def critic_cam(
    agent: ActorCritic, output: Seen, method: str = "gradcam", generator: torch.Generator | None = None
) -> Tensor:
    """Attention of an agent's value, (B, h, w), not normalised (Eq. 3).

    In closed form for POOLED_METHODS, else by automatic differentiation of the layers behind the feature
    maps. `diffgradcam` contrasts classes, which a value does not have: it is the actor's best action's.

    Args:
        agent: network with the head flatten -> fc -> ReLU -> critic and actor.
        output: its forward pass.
        method: one of METHODS.
        generator: source of `smoothgrad`'s noise.
    """
    if method in POOLED_METHODS:
        out_weight = agent.critic.weight  # (1, 512)
        if method == "diffgradcam":  # y_c - log sum of exp of the others: their softmax weighs their rows
            best = output.logits.argmax(dim=1, keepdim=True)
            others = output.logits.scatter(1, best, float("-inf")).softmax(dim=1)
            out_weight = agent.actor.weight[best.squeeze(1)] - others @ agent.actor.weight  # (B, 512)
        pooled = pooled_weight(agent.fc.weight, agent.map_shape, channels_last=True)
        return closed_form_map(output.feature_maps, output.hidden, pooled, out_weight, method == "magnitude")
    feature_maps, fc_weight = output.feature_maps.float(), agent.fc.weight.float()

    def value(maps: Tensor) -> Tensor:
        hidden = F.linear(maps.movedim(1, -1).flatten(1), fc_weight, agent.fc.bias.float()).relu()
        return F.linear(hidden, agent.critic.weight, agent.critic.bias).squeeze(1)  # (B,)

    return class_activation_map(feature_maps, value, method, generator=generator)


def normalize(cam: Tensor) -> Tensor:
    """Min-max of each map to [0, 1], (B, h, w) -> (B, h, w), differentiable through both extremes.

    A constant map becomes zeros with zero gradient; so does one whose max - min is at most 1e-18, where the
    gradient of the division would overflow. Where max - min is not finite there is NaN. The result is float32
    at least.
    """
    if cam.shape[1:] == (1, 1):
        warnings.warn("maps of 1 x 1 train nothing: take an earlier layer, with positions", stacklevel=2)
    cam = at_least_float32(cam)
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    span = high - low
    return (cam - low) / torch.where(span > FAINTEST_SPAN, span, float("inf"))


def is_dead(cam: Tensor) -> Tensor:
    """Which un-normalised maps, (B, h, w), have no positive value: (B,) bool. Their ReLU left nothing."""
    return cam.amax(dim=(1, 2)) <= 0


def upsample(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, H, W) by bilinear interpolation, align_corners=False; `size` is (H, W)."""
    return F.interpolate(heat.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def _points(
    feature_maps: Tensor, method: str, samples: int, noise: float, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Feature maps at which to take the gradient, each (B, K, h, w)."""
    if method == "smoothgrad":
        fixed = feature_maps.detach()
        low, high = fixed.amin(dim=(1, 2, 3), keepdim=True), fixed.amax(dim=(1, 2, 3), keepdim=True)
        deviation = noise * (high - low)  # (B, 1, 1, 1)
        for _ in range(samples):
            draw = torch.randn(fixed.shape, generator=generator, dtype=fixed.dtype, device=fixed.device)
            yield feature_maps + deviation * draw
    elif method == "integrated-gradients":
        for step in range(samples):
            yield feature_maps * ((step + 0.5) / samples)
    else:
        yield feature_maps


def _scalars(target: Tensor, feature_maps: Tensor, method: str, classes: Tensor | None) -> Tensor:
    """The target as one scalar a sample, (B,)."""
    target = at_least_float32(target)
    if method == "diffgradcam":
        target = contrast(target, target.argmax(dim=-1) if classes is None else classes)
    if target.shape != feature_maps.shape[:1]:
        raise ValueError(
            f"target must be one scalar a sample, shape {tuple(feature_maps.shape[:1])}, "
            f"got {tuple(target.shape)}: select a class with logits.gather, or squeeze the last dimension"
        )
    return target


def _gradient(scalars: Tensor, feature_maps: Tensor, create_graph: bool, per_sample: bool) -> Tensor:
    """dy_b/dA_b of every sample, (B, K, h, w): one backward pass on the sum (Eq. 4), or B of them."""
    if not (scalars.requires_grad and feature_maps.requires_grad):
        raise ValueError(UNCONNECTED)

    if create_graph and _passes_fused_attention(scalars, feature_maps):
        raise ValueError(FUSED)

    def backward(selected: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(
            selected.sum(), feature_maps, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        if gradient is None:
            raise ValueError(UNCONNECTED)
        return gradient

    if not per_sample:
        return backward(scalars)
    return torch.stack([backward(scalars[index])[index] for index in range(len(scalars))])


def _passes_fused_attention(scalars: Tensor, feature_maps: Tensor) -> bool:
    """Tell if scaled_dot_product_attention, by another kernel than MATH, lies between the two."""
    maps: Any = get_gradient_edge(feature_maps).node
    earliest = 0 if feature_maps.is_leaf else maps._sequence_nr()

    def between(node: Any) -> set[Any]:
        """Return what a node's gradient goes on to, as far as it was computed after the maps."""
        waiting, met = [node], set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in met and node._sequence_nr() >= earliest:
                met.add(node)
                waiting.extend(following for following, _ in node.next_functions)
        return met

    fused = (node for node in between(scalars.grad_fn) if "ScaledDotProduct" in node.name())
    return any(maps in between(node) for node in fused)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for a tensor's device, because float16 cannot hold what attention computes."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is where its type holds more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown attention method {method!r}; valid: {', '.join(METHODS)}")
