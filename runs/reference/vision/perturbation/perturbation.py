"""The regulariser study (paper, Appendix B: Table 4 and Figure 9): does a regulariser notice bad attention?

Masks M that are shifted, eroded and dilated more and more stand in for attention H of growing badness. How
well does a regulariser R(M, H) follow the severity? Compared are CAMAL, beta - alpha of Eq. 1, and the
suppress-only regulariser of earlier work, beta alone. Suffixes name axes: M masks, P perturbations,
R regularisers, S severities.
"""
# ruff: noqa: N803, N806, N815 - axis suffixes are capitals

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tqdm import tqdm

from camal_rl import __version__, camal, metrics, stats
from camal_rl.doom import DoomVectorEnv
from camal_rl.errors import UserError
from camal_rl.game.definition import Definition, load_definition
from camal_rl.game.engine import engine_errors_told
from camal_rl.results import figures
from camal_rl.run.command_line import Count, Positive, parse, run_at_once
from camal_rl.run.files import make_folder, write_together
from camal_rl.vision import datasets
from camal_rl.vision.samples import DataName


@dataclass
class Args:
    """Measure how well regularisers follow the severity of bad attention (paper, Table 4 and Figure 9)."""

    data: tuple[DataName, ...] = ()
    """data sets whose masks to use"""
    env: tuple[str, ...] = ()
    """ViZDoom environments, or .toml files, whose targets' masks to use, seen by random play"""
    data_dir: Path = Path("data")
    """folder that holds the data sets; shapes needs none"""
    masks: Positive = 200
    """masks of each data set and environment"""
    steps: Positive = 5
    """severities beside 0; a mask needs so many pixels from its edge inwards"""
    seed: Count = 0
    """seed of play, of the choice of masks and of the directions of shifts"""
    output: Path = Path("runs/perturbation")
    """folder for table.md, table.tex, results.json and the figure"""


PERTURBATIONS = ("shift", "erode", "dilate")
REGULARISERS = {"camal": "CAMAL", "suppress": "Suppress only"}
CORRELATIONS = {"spearman": "Spearman", "pearson": "Pearson"}
PERTURBED = 0.95
"""Share of the mask that the last erosion takes away, and of the rest that the last dilation covers."""
SIGNIFICANT = 0.05
"""p below which a difference is significant (paper, Table 4)."""
NO_RESPONSE = "\N{EM DASH}"
"""Stands in the table where a regulariser's response is the same at every severity (paper, Table 4)."""
GAMES, EVERY = 4, 10
"""Games that are played at once for masks, and agent steps between two masks of a game."""
MOST_TRIED = 50
"""Masks that are looked at for each that is wanted, at most."""

# -------------------------------------------------------------------------- masks that stand in for attention


def severities(steps: int) -> np.ndarray:
    """Even steps from 0, the mask itself, to 1: float64 (steps + 1,)."""
    return np.linspace(0, 1, steps + 1)


def shift(mask: np.ndarray, steps: int, angle: float) -> np.ndarray:
    """Move a mask, uint8 {0, 1} (H, W), in the end to just beside its old place: misalignment, (S, H, W).

    It moves by whole pixels towards the angle, in radians from the right to the bottom. Pixels that leave the
    image are lost.
    """
    *_, width, height = cv2.boundingRect(mask)
    direction = np.array([math.cos(angle), math.sin(angle)])  # x, y
    length = 1 / np.max(abs(direction) / (width, height))
    offsets = np.rint(np.outer(severities(steps) * length, direction))  # (S, 2)
    moves = (np.array([[1, 0, x], [0, 1, y]]) for x, y in offsets)
    return np.stack([cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_NEAREST) for move in moves])


def erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask by discs of growing radius until a twentieth or less is left: under-coverage, (S, H, W).

    The image's border erodes nothing, for what lies beyond it is not known to be outside.
    """
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Rounded to what it is, the root of a whole number: a radius of 5 has to reach a pixel at (3, 4).
    depth = np.sqrt(np.rint(np.square(distance, dtype=np.float64)))
    radii = severities(steps) * np.quantile(depth[mask > 0], PERTURBED, method="higher")
    eroded: np.ndarray = (depth > radii[:, None, None]).astype(np.uint8)
    return eroded


def dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilate a mask as `erode` erodes the rest of the image: over-coverage, (S, H, W)."""
    return 1 - erode(1 - mask, steps)


def perturbed(mask: np.ndarray, angle: float, steps: int) -> np.ndarray:
    """A mask under each of PERTURBATIONS: uint8 {0, 1} (P, S, H, W)."""
    return np.stack([shift(mask, steps, angle), erode(mask, steps), dilate(mask, steps)])


def why_left_out(mask: np.ndarray, steps: int) -> str | None:
    """The reason why a mask can't be used, in two words at most; None for a mask that can."""
    if not mask.any():
        return "empty"
    if mask.all():
        return "full"
    for perturbation, reason in ((erode, "too small"), (dilate, "too large")):
        sizes = perturbation(mask, steps).sum(axis=(1, 2), dtype=np.int64)
        if not np.diff(sizes).all():  # the same attention at two severities would blame the regulariser
            return reason
    return None


# -------------------------------------------------------------------------------------- where masks come from

Masks = Generator[np.ndarray, None, None]


def data_masks(data: str, folder: Path, seed: int) -> Masks:
    """The masks of a data set in random order, uint8 {0, 1} (S, S)."""
    masks = datasets.load(data, folder).masks
    for index in np.random.default_rng([seed, 0]).permutation(len(masks)):
        yield masks[index]


def game_masks(env: str | Path | Definition, seed: int) -> Masks:
    """Masks of the targets that random play meets, uint8 {0, 1} at the label buffer's size, without end."""
    envs = DoomVectorEnv(env, GAMES, frame_size=(1, 1), frame_stack=1)
    rng = np.random.default_rng([seed, 0])
    try:
        envs.reset(seed=rng.integers(2**31, size=GAMES).tolist())
        while True:
            yield from envs.masks.copy()
            for _ in range(EVERY):
                envs.step(rng.integers(len(envs.envs[0].actions), size=GAMES))
    finally:
        envs.close()


# -------------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True, eq=False)
class Study:
    """The masks of a data set and the responses to them."""

    name: str
    responses_MPRS: np.ndarray
    left_out: Mapping[str, int]  # masks that could not be used, by reason
    example: tuple[np.ndarray, float]  # the first mask, uint8 (H, W), and the direction of its shift


def study(name: str, masks: Iterable[np.ndarray], count: int, steps: int, seed: int = 0) -> Study:
    """Perturb masks, each uint8 {0, 1} (H, W), and evaluate the regularisers on them.

    Masks are read until `count` of them could be used, or MOST_TRIED times as many were read. A mask that
    came before is left out. The seed decides the directions of shifts.

    Raises:
        UserError: none of the masks can be used.
    """
    rng = np.random.default_rng([seed, 1])
    left_out: Counter[str] = Counter()
    example: tuple[np.ndarray, float] | None = None
    found: list[np.ndarray] = []
    seen: set[bytes] = set()
    with tqdm(total=count, desc=name, unit="mask", disable=None) as bar:
        for _, mask in zip(range(MOST_TRIED * count), masks, strict=False):
            digest = hashlib.sha256(mask.tobytes()).digest()
            if reason := why_left_out(mask, steps) or ("repeated" if digest in seen else None):
                left_out[reason] += 1
                continue
            seen.add(digest)
            angle = rng.uniform(0, 2 * math.pi)
            example = example or (mask, angle)
            found.append(np.stack([responses(mask, heat) for heat in perturbed(mask, angle, steps)]))
            bar.update()
            if len(found) == count:
                break
    if example is None:
        raise UserError(
            f"{name}: none of {left_out.total()} masks can be used ({_listed(left_out)}): "
            f"give fewer --steps than {steps}, or other data."
        )
    return Study(name, np.stack(found), left_out, example)


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()))


def responses(mask: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """R(M, H) of each regulariser for mask (H, W) and attention (S, H, W), by the loss's own code: (R, S)."""
    # float64, so that adding alpha, a constant under dilation, does not change the correlations.
    heat = torch.from_numpy(attention.astype(np.float64))
    alpha, beta = camal.alpha_beta(heat, torch.from_numpy(mask).expand(heat.shape))
    return torch.stack([beta - alpha, beta]).numpy()


def correlations(responses_MPRS: np.ndarray) -> dict[str, np.ndarray]:
    """Correlations of severity and response by name, each (M, P, R); NaN where a response is constant."""
    rows = responses_MPRS.reshape(-1, responses_MPRS.shape[-1])
    severity = np.broadcast_to(severities(rows.shape[1] - 1), rows.shape)
    kinds = {"spearman": metrics.rank_correlation, "pearson": metrics.correlation}
    found = {name: correlate(severity, rows) for name, correlate in kinds.items()}
    return {name: scores.reshape(responses_MPRS.shape[:-1]) for name, scores in found.items()}


def compare(scores_MR: np.ndarray) -> dict[str, Any]:
    """A correlation of CAMAL and of the suppress-only regulariser over masks, as results.json holds it.

    A constant response has no correlation. It says as much about severity as one whose correlation is 0, and
    counts as that in the test, so that silence is no advantage; means are over the others. The test is
    Wilcoxon's, one-tailed and paired by masks. CAMAL is better where its mean is higher, or the only one, and
    significantly so.
    """
    found: dict[str, Any] = {}
    for name, scores in zip(REGULARISERS, scores_MR.T, strict=True):
        defined = scores[~np.isnan(scores)]
        found[name] = {
            "mean": float(defined.mean()) if defined.size else None,
            "std": _known(_deviation(defined)),
            "responding": defined.size,
            "values": _known(scores),
        }
    p = stats.wilcoxon(*np.nan_to_num(scores_MR).T)
    camal_mean, suppress_mean = (found[name]["mean"] for name in REGULARISERS)
    higher = camal_mean is not None and (suppress_mean is None or camal_mean > suppress_mean)
    return {**found, "p": p, "better": higher and p < SIGNIFICANT}


def _deviation(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation of a sample over masks, the first axis; NaN of fewer than two."""
    return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def _known(values: np.ndarray) -> Any:
    """Return values as JSON holds them, None for NaN."""
    return np.where(np.isnan(values), None, values).tolist()  # type: ignore[call-overload]


def numbers(study: Study) -> dict[str, Any]:
    """All numbers of a study, as results.json holds them."""
    scores = correlations(study.responses_MPRS)
    mean_PRS, std_PRS = study.responses_MPRS.mean(axis=0), _deviation(study.responses_MPRS)
    return {
        "name": study.name,
        "masks": len(study.responses_MPRS),
        "left_out": dict(study.left_out),
        "perturbations": {
            perturbation: {
                **{name: compare(scores[name][:, place]) for name in CORRELATIONS},
                "response": {
                    name: {"mean": mean_PRS[place, r].tolist(), "std": _known(std_PRS[place, r])}
                    for r, name in enumerate(REGULARISERS)
                },
            }
            for place, perturbation in enumerate(PERTURBATIONS)
        },
    }


# --------------------------------------------------------------------------------------- Table 4 and Figure 9


def table(results: Sequence[Mapping[str, Any]], steps: int) -> figures.Table:
    """Mean and standard deviation of correlations over masks; bold where CAMAL is better."""
    rows, silent, counts = [], [], []
    for data in results:
        left_out = f"; left out: {_listed(data['left_out'])}" if data["left_out"] else ""
        counts.append(f"{data['name']}: {data['masks']} masks used{left_out}.")
        for perturbation, found in data["perturbations"].items():
            cells = [cell for name in CORRELATIONS for cell in _cells(found[name])]
            rows.append([data["name"] if perturbation == "shift" else "", perturbation.capitalize(), *cells])
            for regulariser, label in REGULARISERS.items():
                missing = data["masks"] - found["pearson"][regulariser]["responding"]
                if 0 < missing < data["masks"]:
                    silent.append(
                        f"{label} does not respond to {perturbation} in {missing} of {data['masks']} masks "
                        f"of {data['name']}, which its mean leaves out."
                    )
    note = (
        "Mean and sample standard deviation over masks of the correlation between severity (0 to 1 in "
        f"{steps} steps) and response. Bold: CAMAL's mean is higher, one-tailed Wilcoxon signed-rank p below "
        f"{SIGNIFICANT}; a constant response counts as 0 in the test, and as {NO_RESPONSE} where it is "
        "constant for all masks."
    )
    columns = [f"{name}: {label}" for name in CORRELATIONS.values() for label in REGULARISERS.values()]
    return figures.Table(
        "Correlation of regularisers with the severity of perturbations",
        ["Data set", "Perturbation", *columns],
        rows,
        " ".join([note, *silent, *counts]),
        labels=2,
    )


def _cells(compared: Mapping[str, Any]) -> list[str]:
    cells = []
    for name in REGULARISERS:
        mean, deviation = compared[name]["mean"], compared[name]["std"]
        spread = "" if deviation is None else f" \N{PLUS-MINUS SIGN} {deviation:.2f}"
        cells.append(NO_RESPONSE if mean is None else f"{figures.fixed(mean, 2)}{spread}")
    return [cells[0].join(figures.BOLD) if compared["better"] else cells[0], cells[1]]


SHOWN = {"shift": 0.4, "erode": 0.6, "dilate": 0.2}
"""Severity of the figure's examples, as far as the steps have it."""
PIXELS = {"M and H": "#e69f00", "M only: missed": "#0072b2", "H only: spurious": "#8e5bb5"}
LINES = (figures.INK, figures.COLOURS[1])
"""Colours of the regularisers' lines."""


def figure(studies: Sequence[Study], steps: int) -> dict[str, bytes]:
    """A row for each perturbation: an example, of one data set after the other, and all masks' responses."""
    responses_MPRS = np.concatenate([study.responses_MPRS for study in studies])

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(PERTURBATIONS), 2, width_ratios=[1, 1.3])
        for place, (perturbation, (example, curves)) in enumerate(zip(PERTURBATIONS, grid, strict=True)):
            shown = min(max(1, round(SHOWN[perturbation] * steps)), steps - 1)
            data = studies[place % len(studies)]
            mask, angle = data.example
            _example(example, mask, perturbed(mask, angle, steps)[place, shown])
            example.set_title(perturbation.capitalize())
            example.set_ylabel(data.name)
            drawn = _curves(curves, responses_MPRS[:, place])
            curves.axvline(shown / steps, color=figures.MUTED, linestyle=":", linewidth=1, zorder=0.5)
        grid[0, 1].set_title("R(M, H)")
        curves.set_xlabel("severity")
        marks = [*(Patch(color=colour) for colour in PIXELS.values()), *drawn]
        figure.legend(marks, [*PIXELS, *REGULARISERS.values()], loc="outside upper center", ncols=2)
        figure.supxlabel(
            f"Curves: mean and standard deviation over {len(responses_MPRS)} masks.\n"
            "Dotted: the severity of the example. Grey: beyond the image.",
            color=figures.MUTED,
            fontsize=7.5,
        )

    return figures.draw("figure", 4.9, paint)


def _example(axes: Axes, mask: np.ndarray, attention: np.ndarray) -> None:
    """Draw mask and attention, uint8 {0, 1} (H, W), in the colours of PIXELS."""
    pixels = np.ones((*mask.shape, 3))
    kinds = (mask & attention, mask & (1 - attention), attention & (1 - mask))
    for colour, kind in zip(PIXELS.values(), kinds, strict=True):
        pixels[kind == 1] = to_rgb(colour)
    axes.imshow(pixels, interpolation="none")
    x, y, width, height = cv2.boundingRect(mask | attention)
    half = 0.62 * max(width, height) + 1
    axes.set_xlim(x + width / 2 - half, x + width / 2 + half)
    axes.set_ylim(y + height / 2 + half, y + height / 2 - half)
    axes.set(facecolor=figures.GRID, xticks=[], yticks=[])


def _curves(axes: Axes, response_MRS: np.ndarray) -> list[Line2D]:
    """Draw each regulariser's mean response, and a standard deviation to both sides, against severity."""
    means_RS, deviations_RS = response_MRS.mean(axis=0), _deviation(response_MRS)
    both = enumerate(zip(means_RS, deviations_RS, strict=True))
    bands = {place: stats.Band(mean, mean - spread, mean + spread) for place, (mean, spread) in both}
    axes.set(ylim=(-1.1, 1.1), yticks=[-1, 0, 1], xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    return figures.lines(axes, severities(response_MRS.shape[-1] - 1), bands, LINES.__getitem__)


# --------------------------------------------------------------------------------- from command line to files


def make(args: Args) -> list[str]:
    """Study all data sets, write the files, and return what the command line prints."""
    sources = _sources(args)
    make_folder(args.output)
    studies = []
    for name, masks in sources:
        with contextlib.closing(masks):  # and with it the games
            studies.append(study(name, masks, args.masks, args.steps, args.seed))
    results = [numbers(study) for study in studies]
    made = table(results, args.steps)
    content = {
        "version": __version__,
        **{name: getattr(args, name) for name in ("masks", "steps", "seed")},
        "severities": severities(args.steps).tolist(),
        "data": results,
    }
    files = {
        "table.md": figures.markdown(made).encode(),
        "table.tex": figures.latex(made).encode(),
        "results.json": (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(),
        **figure(studies, args.steps),
    }
    write_together({args.output / file: content for file, content in files.items()})
    return [files["table.md"].decode(), *(f"  {args.output / file}" for file in files)]


def _sources(args: Args) -> list[tuple[str, Masks]]:
    """Name and masks of each data set and environment; only the definitions are read yet."""
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: give a number of at least 2.")
    if not args.data and not args.env:
        raise UserError(
            "there are no masks to perturb: name data sets with --data, such as shapes, or ViZDoom "
            "environments with --env, such as Basic."
        )
    sources = [(data, data_masks(data, args.data_dir, args.seed)) for data in dict.fromkeys(args.data)]
    definitions = [load_definition(env) for env in dict.fromkeys(args.env)]
    return sources + [(definition.name, game_masks(definition, args.seed)) for definition in definitions]


def main(args: Args) -> int:
    """Run the study, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""

    def run() -> None:
        torch.set_num_threads(1)  # a mask at a time is too little work for several threads
        with engine_errors_told():
            print("\n".join(make(args)))

    return run_at_once(run)


if __name__ == "__main__":
    sys.exit(main(parse(Args, "perturbation.py")))
