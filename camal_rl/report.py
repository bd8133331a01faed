"""Scores of many runs -> statistics, the paper's Figures 4 and 6, tables, and one HTML page that says it all.

`study` reads the run folders, `comparison` computes, `page` draws; here is what is said and shown of it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from camal_rl import __version__, stats
from camal_rl.errors import UserError
from camal_rl.results import figures as page
from camal_rl.results.comparison import (
    METRICS,
    TAGS,
    WINDOWS,
    Comparison,
    Results,
    compute,
    jobs,
    matrix,
    name,
)
from camal_rl.results.figures import NOTHING, Table, shown
from camal_rl.results.study import Run, Study, comparability, read_study, some, training, versions
from camal_rl.run.command_line import run_at_once
from camal_rl.run.files import make_folder, write_together
from camal_rl.stats import Band, Interval

FORMAT = 1
"""Of the report's scores.json and statistics.json."""
MEDIA_LIMIT = 8 * 2**20
"""Bytes of pictures and videos in the page."""
PICTURE_WIDTH = 1600
"""Pixels of pictures in the page, at most."""
CHANCE_LIMIT = 0.12
"""Verdicts that chance makes more often than this are warned of; with 5 runs of each it does in 10 %."""
STATISTIC_NAMES = {"mean": "Mean", "median": "Median", "iqm": "IQM", "optimality_gap": "Gap"}
LABELS = {"iou": "IoU", "return": "Normalised return"}
SHORT = {"iou": "IoU", "return": "return"}
ROWS = {"iou": "IoU", "return": "Return"}

Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass
class Args:
    """Compare methods over environments and seeds: statistics, figures, tables and a page to read."""

    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUNS")]]
    """folder that holds <env>/<method>/seed<k>/scores.json"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write to, RUNS/report if none is given"""
    repetitions: Count = stats.REPETITIONS
    """of the bootstrap"""
    seed: Count = 0
    """of the bootstrap"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.report", args=arguments)


# ------------------------------------------------------------------------------------------------------------
# In words


def pair(methods: tuple[str, str]) -> str:
    """What a probability of improvement is of."""
    return " > ".join(map(name, methods))


def verdicts(methods: Sequence[str], joint: Mapping[str, Comparison]) -> list[str]:
    """The findings in plain words: a sentence on the first method and each other one."""
    first, *others = methods
    if not others:
        means = {metric: joint[metric].sbci[first]["mean"] for metric in METRICS}
        return [
            f"There are only runs of {name(first)}, so nothing is compared: its mean IoU is "
            f"{shown(means['iou'], 2)}, its mean normalised return {shown(means['return'], 2)}."
        ]
    words = {
        "iou": {
            "significant": "attention is better aligned than {}",
            "not significant": "attention is not significantly better aligned than {}",
            "significantly worse": "attention is significantly worse aligned than {}",
            "undefined": "attention can't be compared with {}",
        },
        "return": {
            "significant": "return is better than {}",
            "not significant": "return is not significantly better than {}",
            "significantly worse": "return is significantly worse than {}",
            "undefined": "return can't be compared with {}",
        },
    }
    sentences = []
    for other in others:
        clauses = []
        for metric in METRICS:
            improvement = joint[metric].poi[first, other]
            found = stats.verdict(improvement)
            clause = words[metric][found].format(f"{name(other)}'s")
            if found == "undefined":
                known = "" if math.isnan(improvement.estimate) else f"POI {improvement.estimate:.2f}. "
                clause += f" ({known}{(improvement.reason or '').rstrip('.')})"
            else:
                poi = f"POI {shown(improvement, 2)}".replace(" [", ", 95 % interval [")
                clause += f" ({poi}, significant)" if found == "significant" else f" ({poi})"
            clauses.append(clause)
        sentences.append(f"{name(first)}'s {clauses[0]}; its {clauses[1]}.")
    return sentences


def no_width(results: Results) -> bool:
    """Whether a probability of improvement has an interval without width."""
    every = [*results.joint.values(), *(one for by_env in results.single.values() for one in by_env.values())]
    return any(
        improvement.low is not None and improvement.low == improvement.high
        for one in every
        for improvement in one.poi.values()
    )


def warnings(study: Study, results: Results) -> list[str]:
    """What has to be known before the figures are believed."""
    sentences = []
    if study.missing:
        sentences.append(f"Missing: {', '.join(study.missing)}.")
    if study.unevaluated:
        sentences.append(f"Trained but not evaluated: {', '.join(study.unevaluated)}.")
    counts = {
        f"{env}, {name(method)}": len(study.of(env, method)) for env in study.envs for method in study.methods
    }
    if max(counts.values()) > min(counts.values()):
        told = "; ".join(f"{cell}: {count}" for cell, count in counts.items())
        sentences.append(f"Unequal numbers of seeds. {told}.")
    if max(counts.values()) == 1:
        sentences.append("There is one seed: nothing is known about how much runs differ.")
    sentences += comparability(study)
    for metric in METRICS:
        others = [one for one in METRICS if one != metric]
        for sentence in results.joint[metric].left_out:
            if all(sentence in results.joint[one].left_out for one in others):
                if metric == METRICS[0]:
                    sentences.append(f"Over all environments: {sentence}")
            else:
                sentences.append(f"Over all environments, {LABELS[metric]}: {sentence}")
    for run in study.runs:
        if run.scores["iou"] is None:
            sentences.append(f"{run.title} has no IoU: {run.why_without_iou}.")
    for methods in combinations(study.methods, 2):
        few = {env: rate for env, rate in _single_chances(results, methods) if rate > CHANCE_LIMIT}
        if few:
            sentences.append(
                f"Too few runs for a verdict on {pair(methods)} in {' or '.join(few)} alone: in "
                f"{100 * max(few.values()):.0f} % of experiments chance finds equal methods different."
            )
    for env in study.envs:
        for method in study.methods:
            dead = _mean([run.number("dead_map_fraction") for run in study.of(env, method)])
            if dead >= 0.5:
                sentences.append(
                    f"{100 * dead:.0f} % of the maps of {name(method)} in {env} are dead: each counts as IoU "
                    "0, because there is no attention to measure, not because it is in a wrong place."
                )
    if results.without_curve:
        sentences.append(
            "Learning curves are incomplete, there are no TensorBoard events of "
            f"{' and '.join(TAGS.values())} for {some(results.without_curve)}."
        )
    return sentences


LIMITS = (
    "An interval says how much the result would vary if training were repeated with other seeds, in these "
    "environments. It says nothing about other environments, other lengths of training or other settings.",
    "It is too narrow where seeds are few: with 5 seeds, a nominal 95 % interval of a mean covers the truth "
    "in about 90 % of experiments over 4 environments, and in 84 % in a single one. With fewer it is worse.",
    "POI, P(X > Y), says how often a run of X beats a run of Y, not by how much. Significant means that it "
    "is above 0.5 and that 0.5 is outside its interval (Neyman and Pearson's criterion). Not significant "
    "does not mean equal.",
)
NO_WIDTH = (
    "Where all runs of one method beat all of the other, resampling changes nothing and the interval has no "
    "width, such as [1.00, 1.00]. That is no certainty: between equal methods chance alone does this in one "
    "environment of six with 2 seeds each, in one of 252 with 5, and as often the other way round."
)


def _mean(values: Sequence[float]) -> float:
    """The mean of what is there, NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# ------------------------------------------------------------------------------------------------------------
# Tables and data


def tables(study: Study, results: Results) -> list[Table]:
    """The report's tables: all environments, improvement, by environment, every run."""
    note = (
        "Point estimate and 95 % stratified bootstrap interval. IQM is the mean of the middle half, the gap "
        "(optimality gap, low is good) how far scores stay below 1 on average. "
        + " ".join(f"{LABELS[metric]}: {_counts(results.joint[metric].runs)}." for metric in METRICS)
    )
    found = [
        Table(
            "Over all environments",
            ["", *map(name, study.methods)],
            [
                [
                    f"{ROWS[metric]}: {STATISTIC_NAMES[statistic]}",
                    *(shown(results.joint[metric].sbci[method][statistic], 3) for method in study.methods),
                ]
                for metric in METRICS
                for statistic in stats.STATISTICS
            ],
            " ".join([note, *_reasons([one for m in METRICS for one in _intervals(results.joint[m])])]),
        )
    ]
    for methods in combinations(study.methods, 2):
        rows, used = [], []
        for where in ("All environments", *study.envs):
            row = [where]
            for metric in METRICS:
                one = results.joint[metric] if where == "All environments" else results.single[metric][where]
                used.append(one.poi[methods])
                row += [shown(one.poi[methods], 2), stats.verdict(one.poi[methods])]
            rows.append(row)
        found.append(
            Table(
                f"Probability of improvement: {pair(methods)}",
                ["", "IoU", "Verdict", "Return", "Verdict"],
                rows,
                " ".join(
                    [
                        "Point estimate, 95 % interval and verdict.",
                        *_chance(results, methods),
                        *_reasons(used),
                    ]
                ),
            )
        )
    return [*found, _by_environment(study, results), _every_run(study)]


def _chance(results: Results, methods: tuple[str, str]) -> list[str]:
    """How often chance alone makes a verdict, in a sentence if there is any verdict."""
    joint = [results.joint[m].chance[methods] for m in METRICS if methods in results.joint[m].chance]
    single = [rate for _, rate in _single_chances(results, methods)]
    told = [
        f"{100 * max(rates):.0f} % of experiments {where}"
        for rates, where in ((joint, "over all environments"), (single, "in a single one"))
        if rates
    ]
    if not told:
        return []
    return [
        "Between equal methods chance alone would make it significantly better or worse in "
        f"{' and in '.join(told)} (simulated, for so many runs). "
        "Rows are not corrected for there being several."
    ]


def _single_chances(results: Results, methods: tuple[str, str]) -> list[tuple[str, float]]:
    return list(
        dict.fromkeys(
            (env, one.chance[methods])
            for metric in METRICS
            for env, one in results.single[metric].items()
            if methods in one.chance
        )
    )


def _counts(runs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {'run' if count == 1 else 'runs'} of {name(m)}" for m, count in runs.items())


def _intervals(one: Comparison) -> list[Interval]:
    return [interval for by_statistic in one.sbci.values() for interval in by_statistic.values()]


def _reasons(intervals: Sequence[Interval]) -> list[str]:
    return list(dict.fromkeys(interval.reason for interval in intervals if interval.reason))


def raw(interval: Interval, scale: tuple[float, float]) -> Interval:
    """The interval of a mean normalised return, as one of the raw return: the scale is linear."""

    def back(value: float) -> float:
        return scale[0] + value * (scale[1] - scale[0])

    if interval.low is None or interval.high is None:
        return Interval(back(interval.estimate), None, None, interval.reason)
    return Interval(back(interval.estimate), back(interval.low), back(interval.high))


def _by_environment(study: Study, results: Results) -> Table:
    rows: list[list[str]] = []
    used: list[Interval] = []
    for env in study.envs:
        for method in study.methods:
            runs = study.of(env, method)
            means = {metric: results.single[metric][env].sbci[method]["mean"] for metric in METRICS}
            used += means.values()
            scale = runs[0].scale if runs else (0.0, 1.0)
            rows.append(
                [
                    env,
                    name(method),
                    str(len(runs)),
                    shown(means["iou"], 3),
                    _number(_mean([run.number("iou_ceiling") for run in runs]), 3),
                    page.percent(_mean([run.number("dead_map_fraction") for run in runs]), " %"),
                    shown(means["return"], 2),
                    shown(raw(means["return"], scale), 1),
                ]
            )
    return Table(
        "By environment",
        ["Environment", "Method", "Runs", "IoU", "Ceiling", "Dead maps", "Normalised", "Return"],
        rows,
        " ".join(
            [
                "Means over runs. A normalised return is 0 for a random policy and 1 for the reference. The "
                "ceiling is the IoU that the target's mask itself has when it is shown at the resolution of "
                "attention; attention can have more. A dead map is all zero and counts as IoU 0.",
                *_reasons(used),
            ]
        ),
        labels=2,
    )


def _every_run(study: Study) -> Table:
    return Table(
        "Every run",
        [
            *("Environment", "Method", "Seed", "IoU", "Ceiling", "Dead maps"),
            *("Normalised", "Return", "Steps", "Episodes"),
        ],
        [
            [
                run.env,
                name(run.method),
                str(run.seed),
                _number(run.score("iou"), 3),
                _number(run.number("iou_ceiling"), 3),
                page.percent(run.number("dead_map_fraction"), " %"),
                _number(run.score("return"), 3),
                _number(run.number("return.mean"), 2),
                f"{run.scores['steps']:,}",
                str(len(run.scores["episodes"])),
            ]
            for run in study.runs
        ],
        labels=2,
    )


def _number(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else page.fixed(value, digits)


COLUMNS: dict[str, Callable[[Run], float]] = {
    "return": lambda run: run.number("return.mean"),
    "normalised_return": lambda run: run.score("return"),
    "iou": lambda run: run.score("iou"),
    "iou_ceiling": lambda run: run.number("iou_ceiling"),
    "dead_map_fraction": lambda run: run.number("dead_map_fraction"),
    "steps": lambda run: run.scores["steps"],
    "episodes": lambda run: len(run.scores["episodes"]),
}
"""What the report's scores.csv and scores.json hold of every run."""


def scores_csv(study: Study) -> bytes:
    """A row a run; an empty field where there is no number."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["environment", "method", "seed", *COLUMNS])
    for run in study.runs:
        values = [plain(value(run)) for value in COLUMNS.values()]
        writer.writerow([run.env, run.method, run.seed, *("" if one is None else one for one in values)])
    return content.getvalue().encode()


def matrix_csv(study: Study, metric: str) -> bytes:
    """Runs x environments: a row for each seed of each method; an empty field where there is no score."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["method", "seed", *study.envs])
    for method in study.methods:
        seeds, rows = matrix(study, method, lambda run: run.score(metric))
        for seed, scores in zip(seeds, plain(rows), strict=True):
            writer.writerow([method, seed, *("" if one is None else one for one in scores)])
    return content.getvalue().encode()


def scores_json(study: Study) -> bytes:
    """Matrices of runs x environments of each method."""
    methods = {}
    for method in study.methods:
        seeds, _ = matrix(study, method, lambda run: run.seed)
        methods[method] = {"seeds": seeds} | {
            column: matrix(study, method, value)[1] for column, value in COLUMNS.items()
        }
    return to_json({"format": FORMAT, "environments": study.envs, "methods": methods})


def statistics_json(study: Study, results: Results, args: Args, sentences: Sequence[str]) -> bytes:
    """Everything that was computed."""

    def compared(one: Comparison) -> dict[str, Any]:
        return {
            "runs": one.runs,
            "left_out": list(one.left_out),
            "sbci": one.sbci,
            "poi": {
                " > ".join(pair): vars(improvement)
                | {"verdict": stats.verdict(improvement), "false_positive_rate": one.chance.get(pair)}
                for pair, improvement in one.poi.items()
            },
        }

    return to_json(
        {
            "format": FORMAT,
            "version": __version__,
            "repetitions": args.repetitions,
            "seed": args.seed,
            "confidence": 0.95,
            "environments": study.envs,
            "methods": study.methods,
            "findings": verdicts(study.methods, results.joint),
            "warnings": list(sentences),
            "metrics": {
                metric: {
                    "joint": compared(results.joint[metric]),
                    "environments": {env: compared(one) for env, one in results.single[metric].items()},
                    "profile": {
                        "thresholds": results.profiles[metric].x,
                        "methods": results.profiles[metric].bands,
                    },
                    "curves": {
                        env: {"steps": lines.x, "methods": lines.bands}
                        for env, lines in results.curves[metric].items()
                    },
                }
                for metric in METRICS
            },
        }
    )


def plain(value: Any) -> Any:
    """In JSON's types; what is no number is None."""
    if isinstance(value, (Interval, Band)):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping[str, Any]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------------------
# Figures


def figures(study: Study, results: Results) -> dict[str, bytes]:
    """All figures' files by name."""
    methods = [name(method) for method in study.methods]
    first = study.methods[0]

    def placed(by_method: Mapping[str, Any]) -> dict[int, Any]:
        return {study.methods.index(method): one for method, one in by_method.items()}

    files: dict[str, bytes] = {}
    for figure, metric in (("figure4", "iou"), ("figure6", "return")):
        one = results.joint[metric]
        rows = {
            STATISTIC_NAMES[statistic]: placed(
                {method: found[statistic] for method, found in one.sbci.items()}
            )
            for statistic in stats.STATISTICS
        }
        gap = {"Gap": rows.pop("Gap")}
        poi = {pair(methods): improvement for methods, improvement in one.poi.items()}
        files |= page.overview_figure(figure, LABELS[metric], methods, rows, gap, poi)
    panels = []
    for metric in METRICS:
        single = results.single[metric]
        means = {
            env: placed({method: found["mean"] for method, found in one.sbci.items()})
            for env, one in single.items()
        }
        poi_by_env = {
            env: {place: one.poi[first, other] for place, other in enumerate(study.methods[1:])}
            for env, one in single.items()
        }
        ceilings = {env: _ceiling(study, env) for env in study.envs} if metric == "iou" else {}
        panels.append(
            page.EnvironmentPanels(f"Mean {SHORT[metric]}", LABELS[metric], means, ceilings, poi_by_env)
        )
    files |= page.environments_figure("environments", methods, panels)
    files |= page.profiles_figure(
        "profiles",
        methods,
        {LABELS[metric]: (lines.x, placed(lines.bands)) for metric, lines in results.profiles.items()},
    )
    curves = []
    for env in study.envs:
        random, reference = next((run.scale for run in study.runs if run.env == env), (math.nan, math.nan))
        levels = {
            "iou": {"ceiling": _ceiling(study, env)},
            "return": {"random": random, "reference": reference},
        }
        curves.append(
            [
                page.CurvePanel(
                    f"{env}: {SHORT[metric]}",
                    results.curves[metric][env].x,
                    placed(results.curves[metric][env].bands),
                    {label: value for label, value in levels[metric].items() if not math.isnan(value)},
                    metric == "iou",
                )
                for metric in METRICS
            ]
        )
    return files | page.curves_figure("curves", methods, curves)


def _ceiling(study: Study, env: str) -> float:
    return _mean([run.number("iou_ceiling") for run in study.runs if run.env == env])


# ------------------------------------------------------------------------------------------------------------
# The page


def captions(study: Study) -> dict[str, str]:
    """What each figure shows."""
    bars = (
        "Bars are 95 % stratified bootstrap intervals, dots are point estimates; a hollow diamond is an "
        "estimate that has no interval."
    )
    improvement = (
        " POI, P(X > Y), is the probability that a run of X beats one of Y, averaged over environments; "
        "at 0.5, the dashed line, neither is better."
        if len(study.methods) > 1
        else ""
    )
    median = "The median is that of the environments' means."
    ceiling = _number(_mean([run.number("iou_ceiling") for run in study.runs]), 2)
    scale = "A normalised return is 0 for a random policy and 1 for the environment's reference policy."
    return {
        "figure4": "Attention alignment over all environments, as in the paper's Figure 4. "
        f"{bars}{improvement} For comparison: the mask itself, shown at the resolution of attention, has "
        f"a mean IoU of {ceiling}. {median}",
        "figure6": "Return over all environments, as in the paper's Figure 6. "
        f"{bars}{improvement} {scale} {median}",
        "environments": f"Each environment by itself. {bars} Dotted lines are the ceilings of IoU.",
        "profiles": "Performance profiles: the share of all runs in all environments that score above a "
        f"threshold, with pointwise 95 % bands. The higher line is better. {scale}",
        "curves": "Learning curves: IoU and raw return against agent steps, mean over seeds with pointwise "
        f"95 % bootstrap bands of whole curves. Training is cut into {WINDOWS} windows; a point is the mean "
        "of all measurements, or of all episodes that ended, in its window and the two beside it. Dotted: "
        "the ceiling of IoU, and the returns of the random and of the reference policy. IoU is measured on "
        "training frames here, and on evaluation episodes everywhere else.",
    }


def media(study: Study) -> tuple[list[str], list[str]]:
    """Blocks of pictures and videos of the first method's first seeds, and what had to be left out."""
    pictures: list[tuple[Path, str]] = []
    videos: list[tuple[Path, str]] = []
    for env in study.envs:
        for run in study.of(env, study.methods[0])[:1]:
            for kind, found in (("png", pictures), ("mp4", videos)):
                folder = run.folder / "media"
                files = sorted(folder.glob(f"evaluation-versus-*.{kind}")) or sorted(
                    folder.glob(f"evaluation.{kind}")
                )
                for file in files:
                    other = file.stem.removeprefix("evaluation").removeprefix("-versus-").replace("-", " ")
                    beside = (
                        f" beside {name(other.split()[0])}{other[len(other.split()[0]) :]}" if other else ""
                    )
                    found.append((file, f"{env}: {name(run.method)} seed {run.seed}{beside}"))
    blocks, left_out, used = [], [], 0
    for file, caption in (*pictures, *videos):
        label = "/".join(file.parts[-5:])
        try:
            content = _jpeg(file) if file.suffix == ".png" else file.read_bytes()
        except OSError as error:
            left_out.append(f"{label} (can't be read: {error.strerror or 'damaged'})")
            continue
        if used + len(content) > MEDIA_LIMIT:
            left_out.append(f"{label} ({len(content) / 2**20:.1f} MB)")
            continue
        used += len(content)
        if file.suffix == ".png":
            chosen = f", by {name(study.methods[0])}'s IoU" if "versus" in file.name else ""
            text = f"{caption}: the frames of highest, median and lowest IoU{chosen}."
            blocks.append(page.picture_block(content, "jpeg", text))
        else:
            blocks.append(page.video_block(content, f"{caption}: episodes with the same starts."))
    return blocks, left_out


def _jpeg(file: Path) -> bytes:
    """A picture at a sixth of its size; the PNG file stays where it is."""
    content = io.BytesIO()
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PICTURE_WIDTH, small.height))
    small.save(content, "jpeg", quality=85, subsampling=0)
    return content.getvalue()


def commands(study: Study, args: Args) -> list[str]:
    """What was run, as far as it is on record."""
    lines = []
    if study.experiment:
        runs = str(args.runs)
        train = shlex.join(["--runs-dir", runs, *study.experiment["train"]])
        evaluate = shlex.join([f"{runs}/ENV/METHOD/seedK", *study.experiment["evaluate"]])
        lines = [
            f"python -m camal_rl.ppo --env ENV --method METHOD --seed K {train}",
            f"python -m camal_rl.evaluate {evaluate}",
        ]
    own = ["python", "-m", "camal_rl.report", str(args.runs)]
    return [*lines, shlex.join([*own, "--repetitions", str(args.repetitions), "--seed", str(args.seed)])]


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def html_page(
    study: Study,
    results: Results,
    args: Args,
    drawn: Mapping[str, bytes],
    every_table: Sequence[Table],
    sentences: Sequence[str],
) -> bytes:
    """The content of report.html."""
    caption = captions(study)
    blocks = {key: page.figure_block(key, drawn[f"{key}.svg"], text) for key, text in caption.items()}
    table = {one.title: page.table_block(one) for one in every_table}
    shots, left_out = media(study)
    cells = [len(study.of(env, method)) for env in study.envs for method in study.methods]
    rests = {
        "Environments": ", ".join(study.envs),
        "Methods": ", ".join(map(name, study.methods)),
        "Seeds of each": _span(cells),
        "Runs": str(len(study.runs)),
        "Agent steps a run": _span([run.scores["steps"] for run in study.runs]),
        "Episodes a run": _span([len(run.scores["episodes"]) for run in study.runs]),
    }
    common = study.runs[0].scores
    settings = {k: v for k, v in common["settings"].items() if k != "versions"}
    first_run = f"of {study.runs[0].title}" + (
        "; see the warnings for other runs" if comparability(study) else ", as of all runs"
    )
    return page.whole(
        f"{' and '.join(map(name, study.methods))}: attention and return",
        f"{len(study.runs)} runs on ViZDoom, compared by camal_rl {__version__}",
        *(page.paragraph(sentence, "verdict") for sentence in verdicts(study.methods, results.joint)),
        *([page.warnings_box(sentences)] if sentences else []),
        page.section(
            "What this rests on",
            page.facts(rests),
            page.bullets([*LIMITS, *([NO_WIDTH] if no_width(results) else [])]),
        ),
        page.section("Attention alignment", blocks["figure4"]),
        page.section("Return", blocks["figure6"]),
        page.section(
            "In numbers",
            *map(page.table_block, every_table[:-2]),
        ),
        page.section("Environment by environment", blocks["environments"], table["By environment"]),
        page.section("How scores are distributed", blocks["profiles"]),
        page.section("How they were learned", blocks["curves"]),
        *(
            [page.section("What the agents look at", *shots, *_skipped(left_out))]
            if shots or left_out
            else []
        ),
        page.section("Every run", page.folded(f"Scores of {len(study.runs)} runs", table["Every run"])),
        page.section(
            "How it was made",
            page.listing(commands(study, args)),
            page.folded(f"Training options {first_run}", page.listing(_options(training(common)))),
            page.folded(f"Evaluation settings {first_run}", page.listing(_options(settings))),
            page.folded(f"Versions {first_run}", page.listing(_options(versions(study.runs[0])))),
            page.paragraph(
                "The same numbers are in statistics.json, scores.json, scores.csv, iou.csv, return.csv, "
                "tables.md and tables.tex beside this page, the figures in PNG and SVG files.",
                "note",
            ),
        ),
    )


def _skipped(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    limit = f"{MEDIA_LIMIT / 2**20:.0f} MB"
    return [page.paragraph(f"Left out, to keep this page's media below {limit}: {', '.join(files)}.", "note")]


def _options(options: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in options.items()]


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def make(args: Args) -> list[str]:
    """Write the report, and return what the command line prints.

    Raises:
        UserError: arguments, runs or folder with which that can't be done; nothing was written then.
    """
    for option, value, least in (("repetitions", args.repetitions, 1), ("seed", args.seed, 0)):
        if not least <= value < 2**32:
            raise UserError(f"--{option} {value}: give a number of at least {least} and below 2^32.")
    study = read_study(args.runs)
    folder = args.output or args.runs / "report"
    make_folder(folder)
    with tqdm(total=jobs(study) + 1, desc="report", mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        results = compute(study, args.repetitions, args.seed, bar.update)
        sentences = warnings(study, results)
        drawn = figures(study, results)
        every_table = tables(study, results)
        files = {
            **drawn,
            "scores.csv": scores_csv(study),
            "iou.csv": matrix_csv(study, "iou"),
            "return.csv": matrix_csv(study, "return"),
            "scores.json": scores_json(study),
            "statistics.json": statistics_json(study, results, args, sentences),
            "tables.md": "\n".join(map(page.markdown, every_table)).encode(),
            "tables.tex": "\n".join(map(page.latex, every_table)).encode(),
            "report.html": html_page(study, results, args, drawn, every_table, sentences),
        }
        bar.update()
    write_together({folder / file: content for file, content in files.items()})
    return [
        *verdicts(study.methods, results.joint),
        *(f"Warning: {sentence}" for sentence in sentences),
        *(f"  {folder / file}" for file in files),
    ]


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
