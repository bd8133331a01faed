"""Scores of many runs -> statistics, the paper's Figures 4 and 6, tables, and one HTML page that says it all.

`study` reads the run folders, `comparison` computes, `tables` puts in tables, `figures` draws, `page` writes;
here is what is said.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import pydantic
import tyro
from tqdm import tqdm

from camal_rl import __version__, stats
from camal_rl.results import comparison, figures, tables
from camal_rl.results.comparison import METRICS, TAGS, Comparison, Lines, Pair, Results, name
from camal_rl.results.figures import BarPanel, LinePanel, fixed, shown
from camal_rl.results.page import Drawing, Listing, Media, Page, Part, publish
from camal_rl.results.study import Study, comparability, read_study, some, training, variants
from camal_rl.run.command_line import Positive, option, parse, run_at_once
from camal_rl.run.files import make_folder

MEDIA_LIMIT = 3 * 2**20
"""Bytes of pictures and videos in the page."""
CHANCE_LIMIT = 0.12
"""Verdicts that chance makes more often than this are warned of; with 5 runs of each it does in 10 %."""
DEAD_LIMIT = 0.5
"""Shares of dead maps that are at least this high are warned of."""
SHORT = {"iou": "IoU", "return": "return"}
LEVELS = (
    "The line called mask is the IoU of the mask itself, shown at the resolution of attention. The one "
    "called constant, where it was measured, is that of the first method's mean map, which never moves: "
    "what IoU is above it has followed the targets."
)


@dataclass
class Args:
    """Compare methods over environments and seeds: statistics, figures, tables and a page to read."""

    runs: tyro.conf.Positional[Annotated[Path, option("RUNS")]]
    """folder that holds <env>/<name>/seed<k>/scores.json"""
    output: Annotated[Path | None, option("DIR")] = None
    """folder to write to, RUNS/report if none is given"""
    repetitions: Positive = stats.REPETITIONS
    """how often the bootstrap resamples the runs"""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32), tyro.conf.arg(metavar="N")] = 0
    """seed of the bootstrap"""


# ------------------------------------------------------------------------------------------------------------
# In words

WORDS = {
    "iou": ("attention", "better aligned than", "worse aligned than"),
    "return": ("return", "better than", "worse than"),
}
"""Measure -> its name in a verdict, and how the first method's is called where it is better or worse."""


def verdicts(study: Study, results: Mapping[str, Results]) -> list[str]:
    """Say what was found: a sentence on the first method and each other method."""
    first, *others = study.methods
    if not others:
        iou, mean_return = (shown(results[metric].joint.sbci[first]["mean"], 2) for metric in METRICS)
        return [
            f"There are only runs of {name(first)}, so nothing is compared: its mean IoU is {iou}, its mean "
            f"normalized return {mean_return}."
        ]
    return [
        f"{name(first)}'s {_clause(study, 'iou', results, (first, other))}; its "
        f"{_clause(study, 'return', results, (first, other))}."
        for other in others
    ]


def _clause(study: Study, metric: str, results: Mapping[str, Results], methods: Pair) -> str:
    subject, better, worse = WORDS[metric]
    whose, joint = f"{name(methods[1])}'s", results[metric].joint
    improvement, verdict = joint.poi[methods], joint.verdicts[methods]
    if verdict == "undefined":
        known = "" if math.isnan(improvement.estimate) else f"POI {improvement.estimate:.2f}; "
        reason = (improvement.reason or "").rstrip(".")
        return f"{subject} can't be compared with {whose} ({known}{reason[:1].lower()}{reason[1:]})"
    poi = f"POI {shown(improvement, 2)}".replace(" [", ", 95 % interval [")
    if doubts := _doubts(study, metric, joint, methods):
        return f"{subject} has no verdict beside {whose} ({poi}, but {' and '.join(doubts)})"
    if verdict == "significant":
        return f"{subject} is {better} {whose} ({poi}, significant)"
    phrase = {"significantly worse": f"significantly {worse}"}.get(verdict, f"not significantly {better}")
    return f"{subject} is {phrase} {whose} ({poi})"


def _doubts(study: Study, metric: str, joint: Comparison, methods: Pair) -> list[str]:
    """Return the warnings, in short, that take a verdict over all environments back."""
    doubts = []
    if (chance := joint.false_positive_rate.get(methods, 0)) > CHANCE_LIMIT:
        doubts.append(f"with so few runs chance finds equal methods different in {100 * chance:.0f} %")
    for method in methods if metric == "iou" else ():
        if (dead := study.mean("dead_map_fraction", method=method)) >= DEAD_LIMIT:
            doubts.append(f"{100 * dead:.0f} % of {name(method)}'s maps are dead")
    if any(sentence.startswith("Not comparable") for sentence in comparability(study)):
        doubts.append("the runs are not comparable")
    return doubts


def warnings(study: Study, results: Mapping[str, Results]) -> list[str]:
    """Say what has to be known before the figures are believed."""
    sentences = []
    if study.missing:
        sentences.append(f"Missing: {', '.join(study.missing)}.")
    if study.unevaluated:
        sentences.append(f"Trained but not evaluated: {', '.join(study.unevaluated)}.")
    cells = [(env, method) for env in study.envs for method in study.methods]
    if max(len(study.of(*cell)) for cell in cells) == 1:
        sentences.append("There is one seed: nothing is known about how much runs differ.")
    sentences += comparability(study)
    left_out = dict.fromkeys(sentence for found in results.values() for sentence in found.left_out)
    sentences += [f"Over all environments: {sentence}" for sentence in left_out]
    for run in study.runs:
        if run.scores.iou is None:
            why = (run.scores.undefined or {}).get("iou", "scores.json gives no reason")
            sentences.append(f"{run.title} has no IoU: {why}.")
    for methods in combinations(study.methods, 2):
        few = {
            env: rate for env in study.envs if (rate := tables.chance(results, methods, env)) > CHANCE_LIMIT
        }
        if few:
            sentences.append(
                f"Too few runs for a verdict on {tables.pair(methods)} in {' or '.join(few)} alone: in "
                f"{100 * max(few.values()):.0f} % of experiments chance finds equal methods different."
            )
    for env, method in cells:
        dead = study.mean("dead_map_fraction", environment=env, method=method)
        if dead >= DEAD_LIMIT:
            sentences.append(dead_maps(f"{name(method)} in {env}", dead))
    without = list(dict.fromkeys(title for found in results.values() for title in found.without_curve))
    if without:
        sentences.append(
            f"Learning curves are incomplete, there is no curves.csv with {' and '.join(TAGS.values())} for "
            f"{some(without)}."
        )
    return sentences


def dead_maps(whose: str, fraction: float) -> str:
    """Return the warning that most maps are dead."""
    return (
        f"{100 * fraction:.0f} % of the maps of {whose} are dead: each counts as IoU 0, because there is no "
        "attention to measure, not because it is in a wrong place."
    )


LIMITS = (
    "An interval says how much the result would vary if training were repeated with other seeds, in these "
    "environments. It says nothing about other environments, other lengths of training or other settings.",
    "It is too narrow where seeds are few: with 5 seeds, a nominal 95 % interval of a mean covers the truth "
    "in about 90 % of experiments over 4 environments, and in 84 % in a single one. With fewer it is worse.",
    "POI, P(X > Y), says how often a run of X beats a run of Y, not by how much. Significant means that it "
    "is above 0.5 and that 0.5 is outside its interval (Neyman and Pearson's criterion). Not significant "
    "does not mean equal.",
    "Where all runs of one method beat all of the other, resampling changes nothing and the interval has no "
    "width, such as [1.00, 1.00]. That is no certainty: between equal methods chance alone does this in one "
    "environment of six with 2 seeds each, in one of 252 with 5, and as often the other way round.",
)


# ------------------------------------------------------------------------------------------------------------
# Figures


def drawings(study: Study, results: Mapping[str, Results]) -> dict[str, Drawing]:
    """Return all figures by name."""
    methods = {method: name(method) for method in study.methods}
    grids = {
        "figure4": _joint_panels(study, "iou", results["iou"].joint),
        "figure6": _joint_panels(study, "return", results["return"].joint),
    }
    if len(study.envs) > 1:
        grids["environments"] = [_environment_panels(study, *found) for found in results.items()]
    files = {key: figures.bars_figure(key, methods, grid) for key, grid in grids.items()}
    profiles = [
        LinePanel(tables.LABELS[metric], found.profile.x, found.profile.bands, share=True)
        for metric, found in results.items()
    ]
    above = "Share of runs above it"
    files["profiles"] = figures.lines_figure("profiles", methods, [profiles], "Threshold", above, 1.9)
    curves = [
        [_curve_panel(study, env, metric, found.curves[env]) for metric, found in results.items()]
        for env in study.envs
    ]
    if any(panel.bands for panels in curves for panel in panels):
        files["curves"] = figures.lines_figure("curves", methods, curves, "Agent steps")
    return {key: Drawing(key, text, files[key]) for key, text in captions(study).items() if key in files}


def _joint_panels(study: Study, metric: str, joint: Comparison) -> list[list[BarPanel]]:
    rows = [
        (label, {method: found[statistic] for method, found in joint.sbci.items()})
        for statistic, label in tables.statistics_shown(study, metric).items()
    ]
    grid = [[BarPanel("SBCI, 95 %", tables.LABELS[metric], [row for row in rows if row[0] != "Gap"])]]
    if joint.poi:
        left, right = zip(*(map(name, both) for both in joint.poi), strict=True)
        rows_of_pairs = [(x, {both[1]: poi}) for x, (both, poi) in zip(left, joint.poi.items(), strict=True)]
        grid[0].append(BarPanel("POI, 95 %", "P(X > Y)", rows_of_pairs, probability=True, right=right))
    gaps = [[BarPanel("", "Optimality gap (low is good)", [row])] for row in rows if row[0] == "Gap"]
    return grid + gaps


def _environment_panels(study: Study, metric: str, found: Results) -> list[BarPanel]:
    first, *others = study.methods
    single = found.environments
    rows = [(env, {m: single[env].sbci[m]["mean"] for m in study.methods}) for env in study.envs]
    known = [_iou_levels(study, env) for env in study.envs if metric == "iou"]
    levels = {label: [found[label] for found in known] for label in (known[0] if known else ())}
    panels = [BarPanel(f"Mean {SHORT[metric]}", tables.LABELS[metric], rows, levels=levels)]
    if others:
        rows = [(env, {other: single[env].poi[first, other] for other in others}) for env in study.envs]
        over = name(others[0]) if len(others) == 1 else "other"
        panels.append(BarPanel("POI", f"P({name(first)} > {over})", rows, probability=True))
    return panels


def _curve_panel(study: Study, env: str, metric: str, lines: Lines) -> LinePanel:
    iou = metric == "iou"
    scale = dict(zip(("random", "reference"), study.scales.get(env, ()), strict=False))
    levels = _iou_levels(study, env) if iou else scale
    return LinePanel(f"{env}: {SHORT[metric]}", lines.x, lines.bands, levels=levels, from_zero=iou)


def _iou_levels(study: Study, env: str) -> dict[str, float]:
    constant = study.mean("iou_constant", environment=env, method=study.methods[0])
    measured = study.table["iou_constant"].notna().any()
    return {"mask": study.mean("iou_mask", environment=env), **({"constant": constant} if measured else {})}


def captions(study: Study) -> dict[str, str]:
    """Say what each figure shows."""
    bars = (
        "Bars are 95 % stratified bootstrap intervals, the lines in them estimates; a line alone has an "
        "interval no wider than itself, a hollow diamond none."
    )
    improvement = (
        " POI, P(X > Y), is the probability that a run of X, named on the left, beats one of Y, named on the "
        "right, averaged over environments; at 0.5, the dashed line, neither is better."
        if len(study.methods) > 1
        else ""
    )
    median = (
        " The median is that of the environments' means; it equals the IQM where the middle half of all runs "
        "are those of the middle environments."
        if len(study.envs) > 1
        else ""
    )
    scale = "A normalized return is 0 for a random policy and 1 for the environment's reference policy."
    return {
        "figure4": "Attention alignment over all environments, as in the paper's Figure 4. "
        f"{bars}{improvement} For comparison: the mask itself, shown at the resolution of attention, has "
        f"a mean IoU of {fixed(study.mean('iou_mask'), 2)}.{median}",
        "figure6": "Return over all environments, as in the paper's Figure 6. "
        f"{bars}{improvement} {scale}{median}",
        "environments": f"Each environment by itself. {bars} {LEVELS}",
        "profiles": "Performance profiles: the share of all runs in all environments that score above a "
        f"threshold, with pointwise 95 % bands. The higher line is better. {scale}",
        "curves": "Learning curves: IoU and raw return against agent steps, mean over seeds with pointwise "
        "95 % bootstrap bands of whole curves. Training is cut into "
        f"{comparison.WINDOWS} windows; a point is the mean of all measurements, or of all episodes that "
        f"ended, in its window and the two beside it; a dot is a single one. {LEVELS} IoU is measured on "
        "training frames here, on evaluation episodes everywhere else.",
    }


# ------------------------------------------------------------------------------------------------------------
# The page


def media(study: Study) -> list[Part]:
    """Return pictures and videos of the first method's first seeds, and a sentence on those left out."""
    first = study.methods[0]
    runs = [run for env in study.envs for run in study.of(env, first)[:1]]
    found: list[Media] = []
    left_out: list[str] = []
    texts = {
        "png": f"frames of high, middle and low IoU of {name(first)}",
        "mp4": "episodes with the same starts",
    }
    for (suffix, text), run in product(texts.items(), runs):
        beside = sorted((run.folder / "media").glob(f"evaluation-versus-*.{suffix}"))
        for file in beside or (run.folder / "media").glob(f"evaluation.{suffix}"):
            words = ["beside", *map(name, file.stem.split("-")[2:])] if beside else []
            of = " ".join([f"{run.env}: {name(first)} seed {run.seed}", *words])
            label = "/".join(file.parts[-5:])
            try:
                shrunk = Media.of(file, f"{of}: {text}.")
            except (OSError, ValueError):
                left_out.append(f"{label} (can't be read)")
                continue
            if sum(len(medium.content) for medium in (*found, shrunk)) <= MEDIA_LIMIT:
                found.append(shrunk)
            else:
                left_out.append(f"{label} ({len(shrunk.content) / 2**20:.1f} MB)")
    limit = f"Left out (this page's media stay below {MEDIA_LIMIT / 2**20:.0f} MB): {', '.join(left_out)}."
    return [*found, *([limit] if left_out else [])]


def report_page(
    study: Study, results: Mapping[str, Results], further: Mapping[str, Comparison], args: Args
) -> Page:
    """Return all that the report says and shows."""

    def span(values: Sequence[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    figure = drawings(study, results)
    environments, curves = ([figure[key]] if key in figure else [] for key in ("environments", "curves"))
    trained = [(run.method, training(run)) for run in study.runs]
    told = variants("They differ in options of training:", trained)
    rests = {
        "Environments": ", ".join(study.envs),
        "Methods": ". ".join([", ".join(map(name, study.methods)), *told]),
        "Seeds of each": span([len(study.of(env, m)) for env in study.envs for m in study.methods]),
        "Runs": str(len(study.runs)),
        "Agent steps a run": span([run.scores.steps for run in study.runs]),
        "Episodes a run": span([len(run.scores.episodes) for run in study.runs]),
    }
    first = study.runs[0]
    others = "; see the warnings for other runs" if comparability(study) else ", as of all runs"
    known = training(first) | first.scores.settings
    own = (args.runs, "--repetitions", args.repetitions, "--seed", args.seed)
    record = [f"{key} = {json.dumps(value)}" for key, value in known.items()]
    return Page(
        f"{' and '.join(map(name, study.methods))}: attention and return",
        f"{len(study.runs)} runs on ViZDoom, compared by camal_rl {__version__}",
        verdicts(study, results),
        warnings(study, results),
        {
            "What this rests on": [rests, LIMITS],
            "Attention alignment": [figure["figure4"]],
            "Return": [figure["figure6"]],
            "In numbers": tables.overall(study, results),
            "Environment by environment": [*environments, tables.by_environment(study, results)],
            "Beside alignment and return": [tables.further(study, further)] if further else [],
            "How scores are distributed": [figure["profiles"]],
            "How they were learned": curves,
            "What the agents look at": media(study),
            "All runs": [tables.every_run(study)],
            "How it was made": [
                Listing([shlex.join(["python", "-m", "camal_rl.report", *map(str, own)])]),
                Listing(record, f"Options and versions of {first.title}{others}"),
                "The same numbers are in statistics.json, scores.csv, iou.csv, return.csv, tables.md and "
                "tables.tex beside this page, the figures in PNG, SVG and PDF files.",
            ],
        },
    )


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def make(args: Args) -> list[str]:
    """Write the report, and return what the command line prints.

    Raises:
        UserError: there are no runs, or a file or folder can't be used; nothing was written then.
    """
    study = read_study(args.runs)
    folder = args.output or args.runs / "report"
    make_folder(folder)
    with tqdm(
        total=comparison.jobs(study) + 1, desc="report", mininterval=0.5 if sys.stderr.isatty() else 30
    ) as bar:
        results = comparison.compute(study, args.repetitions, args.seed, bar.update)
        further = comparison.compute_further(study, args.repetitions, args.seed, bar.update)
        page = report_page(study, results, further, args)
        bar.update()
    statistics = {
        "repetitions": args.repetitions,
        "seed": args.seed,
        "confidence": 0.95,
        "environments": study.envs,
        "methods": study.methods,
        "metrics": results,
        "further": further,
    }
    return publish(folder, page, statistics, tables.data_files(study))


def main(args: Args) -> int:
    """Report, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print("\n".join(make(args))))


if __name__ == "__main__":
    sys.exit(main(parse(Args, "python -m camal_rl.report")))
