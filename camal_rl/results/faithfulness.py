"""Frames that a trained agent saw -> how faithful its attention is, and how much of it was learned.

Removal and insertion of pixels (Sec. 4.2), which the paper leaves out for reinforcement learning, here for
the critic's value and the policy; and cascading randomisation (Adebayo et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import torch

from camal_rl import metrics, ppo
from camal_rl.results.play import NO_TARGET, ORDER, Sample, TrainedRun, Undefined, generator

SHARES = tuple(step / 20 for step in range(21))
"""Shares of pixels removed or inserted."""
SANITY_FRAMES = 256
"""Frames of the sanity check."""
SANITY_DRAWS = 20
"""Random initialisations of the sanity check."""
HEADS = "heads"
"""Actor and critic, which the sanity check initialises together."""
LAYERS = (HEADS, "fc", "conv3", "conv2", "conv1")
"""Layers of the agent, from the output to the input."""


def faithfulness(
    run: TrainedRun,
    sample: Sample,
    stack: Literal["all", "newest"] = "all",
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any] | Undefined:
    """Measure how much attended pixels matter to value and policy, by removing and inserting them (Sec. 4.2).

    For pixels in the order of the attention, of the target mask and of chance, and for two references to put
    in their place, black and a blurred frame, the curves over the share of pixels are those of

    - `value_change`: mean |V(x') - V(x)| over the frames, as a fraction of that of the whole reference: 0 for
      the frame itself, 1 for the reference;
    - `action_probability`: mean probability of the action that was taken, as a fraction of that in the frame
      itself.

    Faithful attention changes the value early when its pixels are removed (a great area) and mends it early
    when they are inserted (a small one); for the probability it is the other way round. A partly replaced
    frame can change the value more than the whole reference does, so a curve may exceed 1, and areas for two
    references are not comparable.

    Args:
        stack: frames of the stack in which pixels are replaced.
        done: called after each of the six pairs of order and reference.
    """
    if not sample.frames:
        return Undefined(NO_TARGET)
    images = np.stack([frame.image for frame in sample.frames])  # (B, stack, H, W)
    count, _, height, width = images.shape
    rows, actions = np.arange(count), np.array([frame.action for frame in sample.frames])
    channels = slice(None) if stack == "all" else slice(-1, None)
    targets = [frame.mask.astype(np.float32) for frame in sample.frames]
    shares = [cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) for mask in targets]
    importance = {
        "attention": metrics.upsample(np.stack([frame.heat for frame in sample.frames]), (height, width)),
        "mask": np.stack(shares),
        "random": np.zeros((count, height, width), np.float32),
    }
    sigma = height / 12
    references = {"black": np.zeros_like(images), "blurred": metrics.blur(images, sigma)}

    @torch.no_grad()
    def predict(batch: np.ndarray) -> np.ndarray:
        output = run.agent(torch.from_numpy(batch).to(run.device))
        return torch.column_stack((output.value, output.logits.softmax(dim=1))).double().cpu().numpy()

    result: dict[str, Any] = {"frames": count, "stack": stack, "shares": SHARES, "blur_sigma": sigma}
    for reference_name, reference in references.items():
        of_reference: dict[str, Any] = {}
        for order_name, scores in importance.items():
            order = metrics.pixel_order(scores, generator(seed, ORDER))
            removal, insertion = metrics.perturbation_curves(
                predict, images, reference, order, np.array(SHARES), channels
            )  # (S, B, 1 + actions)
            original, replaced = removal[0], removal[-1]
            full_change = np.abs(replaced[:, 0] - original[:, 0]).mean()
            chosen = original[rows, 1 + actions].mean()
            of_reference[order_name] = {
                name: {
                    "value_change": _curve(
                        np.abs(curve[:, :, 0] - original[:, 0]).mean(axis=1),  # (S,)
                        full_change,
                        "the reference has the frames' values",
                    ),
                    "action_probability": _curve(
                        curve[:, rows, 1 + actions].mean(axis=1), chosen, "no action taken had a probability"
                    ),
                }
                for name, curve in (("removal", removal), ("insertion", insertion))
            }
            done()
        of_reference["value_change_of_reference"] = full_change
        of_reference["action_probability_of_frame"] = chosen
        result[reference_name] = of_reference
    return result


def _curve(values: np.ndarray, whole: float, otherwise: str) -> dict[str, Any]:
    """Return a curve, (S,), as a fraction of `whole`, and its area; `otherwise` says why there is none."""
    if not whole > 0:
        return {"curve": Undefined(otherwise), "area": Undefined(otherwise)}
    curve = values / whole
    return {"curve": curve.tolist(), "area": float(metrics.area(curve, np.array(SHARES)))}


@torch.no_grad()
def sanity(run: TrainedRun, sample: Sample, seed: int = 0) -> dict[str, Any] | Undefined:
    """Measure how much attention depends on what was learned: cascading randomisation (Adebayo et al. 2018).

    Layers are initialised anew from the output to the input, one more each time. The curve is the rank
    correlation of the map with the trained agent's: for each draw the mean over the frames where neither map
    is dead, then mean and standard deviation over the draws, because a draw decides for all frames alike.
    """
    if not sample.frames:
        return Undefined(NO_TARGET)
    if not isinstance(run.agent, ppo.Agent):
        return Undefined("only the layers of agents trained here are known")
    images = np.stack([frame.image for frame in sample.frames])
    agent = copy.deepcopy(run.agent)

    def maps() -> np.ndarray:
        noise = torch.Generator(run.device).manual_seed(seed)
        cam = run._replace(agent=agent).attend(images, noise)[1]
        return cam.flatten(1).double().cpu().numpy()  # (B, h * w)

    trained = maps()
    correlations = np.full((1 + len(LAYERS), SANITY_DRAWS), np.nan)
    dead = np.zeros((1 + len(LAYERS), SANITY_DRAWS))
    for draw in range(SANITY_DRAWS):
        parameters = dict(run.agent.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((seed + draw) % 2**63)
            fresh = ppo.Agent(agent.actor.out_features, images.shape[1:]).state_dict()
        for depth, layer in enumerate(("nothing", *LAYERS)):
            prefixes = ("actor.", "critic.") if layer == HEADS else (f"{layer}.",)
            parameters |= {name: value for name, value in fresh.items() if name.startswith(prefixes)}
            agent.load_state_dict(parameters)
            randomised = maps()
            correlation = metrics.rank_correlation(trained, randomised)  # (B,)
            if not np.isnan(correlation).all():
                correlations[depth, draw] = np.nanmean(correlation)
            dead[depth, draw] = (randomised.max(axis=1) == randomised.min(axis=1)).mean()
    alive = [draws[~np.isnan(draws)] for draws in correlations]
    return {
        "randomised": ("nothing", *LAYERS),
        "rank_correlation": [
            float(draws.mean()) if len(draws) else Undefined("all maps were dead") for draws in alive
        ],
        "standard_deviation": [
            float(draws.std(ddof=1)) if len(draws) > 1 else Undefined("fewer than two draws had maps")
            for draws in alive
        ],
        "draws": [len(draws) for draws in alive],
        "dead_map_fraction": dead.mean(axis=1).tolist(),
        "frames": len(images),
    }
