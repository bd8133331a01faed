"""The regulariser study (paper, Appendix B: Table 4 and Figure 9): does a regulariser notice bad attention?

Masks that are shifted, eroded and dilated more and more stand in for attention H of growing badness. How well
does what a regulariser R(M, H) says of them follow the severity? Compared are CAMAL, beta - alpha of Eq. 1,
and the suppress-only regulariser of earlier work, beta alone.

Suffixes name axes: M masks, P perturbations, R regularisers, S severities.
"""
# ruff: noqa: N803, N806, N815 - axis suffixes are capitals

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from camal_rl import __version__, metrics, stats
from camal_rl.errors import UserError
from camal_rl.results import figures as page
from camal_rl.run.command_line import run_at_once
from camal_rl.run.files import make_folder, write_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from camal_rl.game.definition import Definition

PERTURBATIONS = ("shift", "erode", "dilate")
REGULARISERS = ("camal", "suppress")
CORRELATIONS = ("spearman", "pearson")
NAMES = {"camal": "CAMAL", "suppress": "Suppress only", "spearman": "Spearman", "pearson": "Pearson"}
PERTURBED = 0.95
"""Share of the mask that the last erosion takes away, and of the rest that the last dilation covers."""
SIGNIFICANT = 0.05
"""p below which a difference is significant (paper, Table 4)."""
NO_RESPONSE = "\N{EM DASH}"
"""Stands in the table where a regulariser's response is the same at every severity (paper, Table 4)."""
GAMES = 4
"""Games that are played at once for masks."""
EVERY = 10
"""Agent steps between two masks of a game."""
MOST_TRIED = 50
"""Masks that are looked at for each that is wanted, at most."""
CANDIDATES = 50
"""The figure's examples are the most typical of so many masks."""
SHOWN = {"shift": 0.4, "erode": 0.6, "dilate": 0.2}
"""Severity of the figure's examples, as far as the steps have it."""

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass
class Args:
    """Measure how well regularisers follow the severity of bad attention (paper, Table 4 and Figure 9)."""

    data: Names = ()
    """data sets whose masks to use: shapes, busi, pet, flower"""
    env: Names = ()
    """ViZDoom environments, or .toml files, whose targets' masks to use, seen by random play"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """folder of the data sets; shapes needs none"""
    masks: Count = 200
    """masks of each"""
    steps: Count = 5
    """severities beside 0; a mask needs so many pixels from its edge inwards"""
    seed: Count = 0
    """of play, of the choice of masks and of the directions of shifts"""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/perturbation")
    """folder for table.md, table.tex, results.json and the figure"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.vision.perturbation", args=arguments)


# ------------------------------------------------------------------------------------------------------------
# Masks that stand in for attention


def severities(steps: int) -> np.ndarray:
    """0 for the mask itself to 1, evenly: float64 (steps + 1,)."""
    return np.linspace(0, 1, steps + 1)


def shift(mask: np.ndarray, steps: int, angle: float) -> np.ndarray:
    """Move a mask, in the end to where its bounding box lies just beside its old place: misalignment.

    Pixels that leave the image are lost.

    Args:
        mask: uint8 {0, 1} (H, W), not empty.
        steps: severities beside 0.
        angle: direction, in radians from the right towards the bottom of the image.

    Returns:
        uint8 {0, 1} (steps + 1, H, W), each moved by whole pixels.
    """
    *_, width, height = cv2.boundingRect(mask)
    direction = np.array([math.cos(angle), math.sin(angle)])  # x, y
    length = 1 / np.max(abs(direction) / (width, height))
    offsets = np.rint(np.outer(severities(steps) * length, direction))  # (S, 2)
    size = (mask.shape[1], mask.shape[0])
    return np.stack(
        [
            cv2.warpAffine(mask, np.array([[1, 0, x], [0, 1, y]]), size, flags=cv2.INTER_NEAREST)
            for x, y in offsets
        ]
    )


def erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask by discs of evenly growing radius until a twentieth or less is left: under-coverage.

    The image's border erodes nothing, for what lies beyond it is not known to be outside.

    Args:
        mask: uint8 {0, 1} (H, W), neither empty nor full.
        steps: severities beside 0.

    Returns:
        uint8 {0, 1} (steps + 1, H, W).
    """
    depth = _distance(mask)  # of each pixel inside to the nearest outside
    radii = severities(steps) * np.quantile(depth[mask > 0], PERTURBED, method="higher")
    eroded: np.ndarray = (depth > radii[:, None, None]).astype(np.uint8)
    return eroded


def dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilate a mask by discs of evenly growing radius until it covers most of the image: over-coverage.

    Args and returns as `erode`.
    """
    distance = _distance(1 - mask)  # of each pixel outside to the nearest inside
    radii = severities(steps) * np.quantile(distance[mask == 0], PERTURBED, method="higher")
    dilated: np.ndarray = (distance <= radii[:, None, None]).astype(np.uint8)
    return dilated


def _distance(pixels: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pixel to the nearest zero, float64 (H, W)."""
    distance = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Rounded to what it is, the root of a whole number: a radius of 5 has to reach a pixel at (3, 4).
    return np.sqrt(np.rint(np.square(distance, dtype=np.float64)))


def why_left_out(mask: np.ndarray, steps: int) -> str | None:
    """Why a mask can't be used, in two words at most; None for one that can.

    Each step has to change the mask: the same attention at two severities would blame the regulariser for
    pixels that are too coarse.
    """
    if not mask.any():
        return "empty"
    if mask.all():
        return "full"
    for perturbed, reason in ((erode, "too small"), (dilate, "too large")):
        sizes = perturbed(mask, steps).sum(axis=(1, 2), dtype=np.int64)
        if not np.diff(sizes).all():
            return reason
    return None


# ------------------------------------------------------------------------------------------------------------
# What regularisers say of them


def responses(mask: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """R(M, H_i) of each regulariser, by the loss's own code.

    Args:
        mask: uint8 {0, 1} (H, W).
        attention: (S, H, W) in [0, 1].

    Returns:
        float64 (R, S), in the order of `REGULARISERS`.
    """
    import torch  # slow to import

    from camal_rl import camal

    # float64, so that adding alpha, a constant under dilation, does not change the correlations.
    heat = torch.from_numpy(attention.astype(np.float64))
    alpha, beta = camal.alpha_beta(heat, torch.from_numpy(mask).expand(heat.shape))
    return torch.stack([beta - alpha, beta]).numpy()


def pearson(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of `one` with the same row of `other`: twice (B, n) -> float64 (B,).

    NaN where a row is constant.
    """
    first, second = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, other))
    varies = (np.ptp(one, axis=1) > 0) & (np.ptp(other, axis=1) > 0)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.where(varies, (first * second).sum(axis=1) / np.where(varies, scale, 1), np.nan)


def correlations(responses_MPRS: np.ndarray) -> dict[str, np.ndarray]:
    """Of severity and response: name of the correlation -> (M, P, R); NaN where a response is constant."""
    rows = responses_MPRS.reshape(-1, responses_MPRS.shape[-1])
    severity = np.broadcast_to(severities(rows.shape[1] - 1), rows.shape)
    found = {"spearman": metrics.rank_correlation(severity, rows), "pearson": pearson(severity, rows)}
    return {name: scores.reshape(responses_MPRS.shape[:-1]) for name, scores in found.items()}


@dataclass(frozen=True, eq=False)
class Study:
    """The masks of one data set and the responses to them."""

    name: str
    responses_MPRS: np.ndarray
    left_out: Mapping[str, int]
    """Masks that could not be used, by reason."""
    candidates: Sequence[tuple[np.ndarray, float]]
    """The first of the masks that were used, uint8 (H, W), and the directions of their shifts."""


def perturbed(mask: np.ndarray, angle: float, steps: int) -> np.ndarray:
    """A mask under each of `PERTURBATIONS`: uint8 {0, 1} (P, S, H, W)."""
    return np.stack([shift(mask, steps, angle), erode(mask, steps), dilate(mask, steps)])


def study(
    name: str,
    masks: Iterable[np.ndarray],
    count: int,
    steps: int,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Study:
    """Perturb masks and evaluate the regularisers on them.

    Args:
        name: what the table calls the data set.
        masks: each uint8 {0, 1} (H, W); read until `count` of them could be used, or `MOST_TRIED` times as
            many were read. A mask that came before is left out.
        count: masks to use.
        steps: severities beside 0.
        seed: of the directions of shifts.
        advance: called for each mask that is used.

    Raises:
        UserError: none of the masks can be used.
    """
    rng = np.random.default_rng([seed, 1])
    left_out: Counter[str] = Counter()
    candidates: list[tuple[np.ndarray, float]] = []
    found: list[np.ndarray] = []
    seen: set[bytes] = set()
    for _, mask in zip(range(MOST_TRIED * count), masks, strict=False):
        digest = hashlib.sha256(mask.tobytes()).digest()
        reason = why_left_out(mask, steps) or ("repeated" if digest in seen else None)
        if reason:
            left_out[reason] += 1
            continue
        seen.add(digest)
        angle = rng.uniform(0, 2 * math.pi)
        attention = perturbed(mask, angle, steps)  # (P, S, H, W)
        found.append(np.stack([responses(mask, one) for one in attention]))
        if len(candidates) < CANDIDATES:
            candidates.append((mask, angle))
        advance()
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"{name}: none of {left_out.total()} masks can be used ({_listed(left_out)}): "
            f"give fewer --steps than {steps}, or other data."
        )
    return Study(name, np.stack(found), left_out, candidates)


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()))


@dataclass(frozen=True)
class Comparison:
    """One correlation under one perturbation, of each of `REGULARISERS`."""

    means: tuple[float, ...]
    """Over the masks to which it responds; NaN where there is none."""
    deviations: tuple[float, ...]
    """Standard deviations over the same masks."""
    responding: tuple[int, ...]
    """Their number."""
    p: float
    """Of the one-tailed Wilcoxon test that CAMAL's is the greater one, paired by masks."""

    @property
    def better(self) -> bool:
        """Whether CAMAL's mean is higher, or the only one there is, and significantly so: bold in Table 4."""
        camal, suppress = self.means
        return self.p < SIGNIFICANT and (camal > suppress or math.isnan(suppress))


def compare(scores_MR: np.ndarray) -> Comparison:
    """A correlation of CAMAL and the suppress-only regulariser over masks.

    A constant response has no correlation. It says as much about severity as one whose correlation is 0, and
    counts as that in the test, so that silence is no advantage; means are over the others.
    """
    defined = [scores[~np.isnan(scores)] for scores in scores_MR.T]
    return Comparison(
        tuple(float(scores.mean()) if scores.size else math.nan for scores in defined),
        tuple(float(scores.std()) if scores.size else math.nan for scores in defined),
        tuple(scores.size for scores in defined),
        stats.wilcoxon(*np.nan_to_num(scores_MR).T),
    )


def comparisons(one: Study) -> dict[str, dict[str, Comparison]]:
    """By perturbation and correlation."""
    scores = correlations(one.responses_MPRS)
    return {
        perturbation: {name: compare(scores[name][:, place]) for name in CORRELATIONS}
        for place, perturbation in enumerate(PERTURBATIONS)
    }


# ------------------------------------------------------------------------------------------------------------
# Where masks come from


Masks = Generator[np.ndarray, None, None]


def data_masks(data: str, folder: Path, seed: int) -> Masks:
    """The masks of a data set in random order, uint8 {0, 1} (S, S).

    Raises:
        UserError: its files are missing.
    """
    from camal_rl.vision import datasets

    masks = datasets.load(data, folder).masks
    for index in np.random.default_rng([seed, 0]).permutation(len(masks)):
        yield masks[index]


def game_masks(env: str | Path | Definition, seed: int) -> Masks:
    """Masks of the targets that random play meets, uint8 {0, 1} at the label buffer's size, without end.

    Args:
        env: as for `doom.DoomVectorEnv`.
        seed: of games and actions.
    """
    from camal_rl.doom import DoomVectorEnv

    envs = DoomVectorEnv(env, GAMES, frame_size=(1, 1), frame_stack=1)
    rng = np.random.default_rng([seed, 0])
    try:
        envs.reset(seed=[int(one) for one in rng.integers(2**31, size=GAMES)])
        while True:
            yield from envs.masks.copy()
            for _ in range(EVERY):
                envs.step(rng.integers(len(envs.envs[0].actions), size=GAMES))
    finally:
        envs.close()


# ------------------------------------------------------------------------------------------------------------
# Table 4


def table(studies: Sequence[Study], steps: int) -> page.Table:
    """Mean and standard deviation of correlations over masks; bold where CAMAL is better."""
    rows, silent = [], []
    for one in studies:
        name = one.name
        for perturbation, found in comparisons(one).items():
            cells = [cell for comparison in found.values() for cell in _cells(comparison)]
            rows.append([name, perturbation.capitalize(), *cells])
            name = ""
            masks = len(one.responses_MPRS)
            for regulariser, responding in zip(REGULARISERS, found["pearson"].responding, strict=True):
                if 0 < responding < masks:
                    silent.append(
                        f"{NAMES[regulariser]} does not respond to {perturbation} in {masks - responding} of "
                        f"{masks} masks of {one.name}, which its mean leaves out."
                    )
    counts = [
        f"{one.name}: {len(one.responses_MPRS)} masks used"
        + (f"; left out: {_listed(one.left_out)}" if one.left_out else "")
        for one in studies
    ]
    note = (
        "Mean and standard deviation over masks of the correlation between severity (0 to 1 in "
        f"{steps} steps) and response. Bold: CAMAL's mean is higher, one-tailed Wilcoxon signed-rank p below "
        f"{SIGNIFICANT}; a constant response counts as 0 in the test, and as {NO_RESPONSE} where it is "
        "constant for all masks."
    )
    return page.Table(
        "Correlation of regularisers with the severity of perturbations",
        [
            "Data set",
            "Perturbation",
            *(f"{NAMES[name]}: {NAMES[one]}" for name in CORRELATIONS for one in REGULARISERS),
        ],
        rows,
        " ".join([note, *silent, ". ".join(counts) + "."]),
        labels=2,
    )


def _cells(comparison: Comparison) -> list[str]:
    cells = [
        NO_RESPONSE
        if math.isnan(mean)
        else f"{page.fixed(mean, 2)} \N{PLUS-MINUS SIGN} {page.fixed(deviation, 2)}"
        for mean, deviation in zip(comparison.means, comparison.deviations, strict=True)
    ]
    return [cells[0].join(page.BOLD), cells[1]] if comparison.better else cells


def results(studies: Sequence[Study], args: Args) -> dict[str, Any]:
    """The content of results.json: all numbers, None where there is none."""

    def plain(values: np.ndarray | Sequence[float]) -> list[float | None]:
        return [None if math.isnan(value) else float(value) for value in values]

    def described(comparison: Comparison, scores_MR: np.ndarray) -> dict[str, Any]:
        by_regulariser = {
            name: {
                "mean": plain(comparison.means)[place],
                "std": plain(comparison.deviations)[place],
                "responding": comparison.responding[place],
                "values": plain(scores_MR[:, place]),
            }
            for place, name in enumerate(REGULARISERS)
        }
        return by_regulariser | {"p": comparison.p, "better": comparison.better}

    data = []
    for one in studies:
        scores, compared = correlations(one.responses_MPRS), comparisons(one)
        by_perturbation = {}
        for place, perturbation in enumerate(PERTURBATIONS):
            response_MRS = one.responses_MPRS[:, place]
            by_perturbation[perturbation] = {
                name: described(compared[perturbation][name], scores[name][:, place]) for name in CORRELATIONS
            } | {
                "response": {
                    name: {
                        "mean": plain(response_MRS[:, index].mean(axis=0)),
                        "std": plain(response_MRS[:, index].std(axis=0)),
                    }
                    for index, name in enumerate(REGULARISERS)
                }
            }
        data.append(
            {
                "name": one.name,
                "masks": len(one.responses_MPRS),
                "left_out": dict(one.left_out),
                "perturbations": by_perturbation,
            }
        )
    return {
        "version": __version__,
        "masks": args.masks,
        "steps": args.steps,
        "seed": args.seed,
        "severities": plain(severities(args.steps)),
        "data": data,
    }


# ------------------------------------------------------------------------------------------------------------
# Figure 9


NOTHING, MISSED, SPURIOUS, OVERLAP, ALONE, BEYOND = range(6)
"""What a pixel of an example is: in neither, in M only, in H only, in both, in the one that is shown alone,
not in the image."""
PIXEL_COLOURS = ("#ffffff", page.COLOURS[0], "#8e5bb5", page.COLOURS[4], page.MUTED, page.GRID)
LINE_COLOURS = (page.INK, page.COLOURS[1])
MARGIN = 0.12
"""Around an example's pixels, as a share of their extent."""


def figure(studies: Sequence[Study], steps: int) -> dict[str, bytes]:
    """A row for each perturbation: an example, of one data set after the other, and all masks' responses."""
    responses_MPRS = np.concatenate([one.responses_MPRS for one in studies])

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(len(PERTURBATIONS), 4, width_ratios=[1, 1, 1, 2.1])
        for row, perturbation in enumerate(PERTURBATIONS):
            *examples, curves = (figure.add_subplot(grid[row, column]) for column in range(4))
            one = studies[row % len(studies)]
            shown = min(max(1, round(SHOWN[perturbation] * steps)), steps - 1)
            _example(examples, one, row, steps, shown)
            examples[0].set_title(perturbation.capitalize())
            if len(studies) > 1:
                examples[0].set_ylabel(one.name)
            _curves(curves, responses_MPRS[:, row])
            curves.axvline(shown / steps, color=page.MUTED, linestyle=":", linewidth=1, zorder=0.5)
            if row == 0:
                curves.set_title("R(M, H)")
            if row < len(PERTURBATIONS) - 1:
                curves.tick_params(labelbottom=False)
        for axes, label in zip(examples, ("mask M", "attention H", "both"), strict=True):
            axes.set_xlabel(label)
        curves.set_xlabel("severity")
        figure.legend(handles=_marks(), loc="outside upper center", ncols=3, handlelength=1.8)
        figure.text(
            0.5,
            0.005,
            f"Curves: mean and standard deviation over {len(responses_MPRS)} masks.\n"
            "Dotted: the severity of the example. Grey: beyond the image.",
            ha="center",
            color=page.MUTED,
            fontsize=7.5,
        )
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(rect=(0, 0.07, 1, 0.93))

    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return page.draw("figure", 4.7, paint)


def _example(every: Sequence[Axes], one: Study, place: int, steps: int, shown: int) -> None:
    """Mask, attention and both of the candidate whose responses are most like its data set's."""
    from matplotlib.colors import to_rgb

    mask, angle = one.candidates[_typical(one, place)]
    attention = perturbed(mask, angle, steps)[place, shown]
    window = _window(mask | attention)
    colours = np.array([to_rgb(colour) for colour in PIXEL_COLOURS])
    kinds = (ALONE * mask, ALONE * attention, MISSED * mask + SPURIOUS * attention)
    for axes, pixels in zip(every, kinds, strict=True):
        axes.imshow(colours[_cut(pixels, window)], interpolation="none")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)


def _curves(axes: Axes, response_MRS: np.ndarray) -> None:
    """Each regulariser's mean response, and a standard deviation to both sides, against severity."""
    mean_RS, std_RS = response_MRS.mean(axis=0), response_MRS.std(axis=0)
    bands = {
        place: stats.Band(mean_S, mean_S - std_S, mean_S + std_S)
        for place, (mean_S, std_S) in enumerate(zip(mean_RS, std_RS, strict=True))
    }
    page.lines(axes, severities(mean_RS.shape[1] - 1), bands, LINE_COLOURS.__getitem__)
    axes.set_ylim(-1.1, 1.1)
    axes.set_yticks([-1, 0, 1])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _marks() -> list[Any]:
    """Of the legend, column by column."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {OVERLAP: "M and H", MISSED: "M only: missed", SPURIOUS: "H only: spurious"}
    pixels = [Patch(color=PIXEL_COLOURS[kind], label=label) for kind, label in kinds.items()]
    lines = [
        Line2D([], [], color=colour, linestyle=dashes, label=NAMES[name])
        for colour, dashes, name in zip(LINE_COLOURS, page.DASHES, REGULARISERS, strict=False)
    ]
    return [pixels[0], lines[0], pixels[1], lines[1], pixels[2]]


def _typical(one: Study, place: int) -> int:
    """The candidate whose responses to a perturbation are nearest to the mean ones of its data set."""
    response_MRS = one.responses_MPRS[:, place]
    distance_M = ((response_MRS - response_MRS.mean(axis=0)) ** 2).sum(axis=(1, 2))
    return int(np.argmin(distance_M[: len(one.candidates)]))


def _window(pixels: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of a square around what is not zero; it may reach beyond the image."""
    x, y, width, height = cv2.boundingRect(pixels)
    side = math.ceil(max(width, height) * (1 + 2 * MARGIN)) + 2
    return y - (side - height) // 2, x - (side - width) // 2, side


def _cut(pixels: np.ndarray, window: tuple[int, int, int]) -> np.ndarray:
    top, left, side = window
    around = np.pad(pixels, side, constant_values=BEYOND)
    return around[top + side : top + 2 * side, left + side : left + 2 * side]


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def make(args: Args) -> list[str]:
    """Study all data sets, write the files, and return what the command line prints.

    Raises:
        UserError: arguments, data or folder with which that can't be done; nothing was written then.
    """
    for option, value, least in (("masks", args.masks, 1), ("steps", args.steps, 2), ("seed", args.seed, 0)):
        if not least <= value < 2**31:
            raise UserError(f"--{option} {value}: give a number of at least {least} and below 2^31.")
    if not args.data and not args.env:
        raise UserError(
            "there are no masks to perturb: name data sets with --data, such as shapes, or ViZDoom "
            "environments with --env, such as Basic."
        )
    sources = _sources(args)
    make_folder(args.output)
    studies = []
    for name, masks in sources:
        interval = 0.5 if sys.stderr.isatty() else 30
        with tqdm(total=args.masks, desc=name, unit="mask", mininterval=interval) as bar:
            try:
                studies.append(study(name, masks, args.masks, args.steps, args.seed, bar.update))
            finally:
                masks.close()  # and with it the games
    made = table(studies, args.steps)
    files = {
        "table.md": page.markdown(made).encode(),
        "table.tex": page.latex(made).encode(),
        "results.json": (json.dumps(results(studies, args), indent=2, allow_nan=False) + "\n").encode(),
        **figure(studies, args.steps),
    }
    write_together({args.output / file: content for file, content in files.items()})
    used = {one.name: len(one.responses_MPRS) for one in studies}
    return [
        page.markdown(made),
        *(
            f"Warning: {name} has {count} masks that can be used, not {args.masks}."
            for name, count in used.items()
            if count < args.masks
        ),
        *(f"  {args.output / file}" for file in files),
    ]


def _sources(args: Args) -> list[tuple[str, Masks]]:
    """Name and masks of each data set and environment, of which nothing is read yet but the definitions."""
    sources = []
    if args.data:
        from camal_rl.vision import datasets

        for data in dict.fromkeys(args.data):
            if data not in datasets.DATA:
                raise UserError(
                    f"no data set {data!r}: choose of {', '.join(datasets.DATA)}, or name a ViZDoom "
                    "environment with --env."
                )
            sources.append((data, data_masks(data, args.data_dir, args.seed)))
    if args.env:
        from camal_rl.game.definition import load_definition

        definitions = [load_definition(env) for env in dict.fromkeys(args.env)]
        sources += [(one.name, game_masks(one, args.seed)) for one in definitions]
    return sources


def main(args: Args) -> int:
    """Run the study, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    # One mask at a time is too little work for several threads; read by torch's import.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from camal_rl.game.engine import engine_errors_told

    def run() -> None:
        with engine_errors_told():
            print("\n".join(make(args)))

    return run_at_once(run)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
