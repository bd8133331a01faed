"""The runs below a folder: their scores, what makes them hard to compare, and their learning curves.

Reads what `camal_rl.evaluate` and the trainer left in the run folders, nothing else.
"""
# ruff: noqa: N803, N806 - axis suffixes are capitals

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from camal_rl import stats
from camal_rl.errors import UserError

FORMAT = 1
"""Of the runs' scores.json that this version reads."""
LARGEST = 1e15
"""Beyond this a number in scores.json can only be damage."""


class Run(NamedTuple):
    """A run that was evaluated. Its folder says what it is."""

    folder: Path
    env: str
    method: str
    seed: int
    scores: dict[str, Any]  # scores.json

    @property
    def title(self) -> str:
        """Environment, method and seed."""
        return f"{self.env}/{self.method}/seed{self.seed}"

    def number(self, path: str) -> float:
        """What scores.json has at a dotted path; NaN where it has null."""
        value = _at(self.scores, path)
        return math.nan if value is None else float(value)

    def score(self, metric: str) -> float:
        """The score that is compared: IoU, or the normalised mean return."""
        if metric == "iou":
            return self.number("iou")
        return float(stats.normalise(np.array(self.number("return.mean")), *self.scale))

    @property
    def why_without_iou(self) -> str:
        """Why IoU is undefined, as scores.json has it."""
        return str((self.scores.get("undefined") or {}).get("iou", "scores.json gives no reason"))

    @property
    def scale(self) -> tuple[float, float]:
        """The environment's random and reference return."""
        definition = "training.definition"
        return self.number(f"{definition}.random_return"), self.number(f"{definition}.reference_return")


class Study(NamedTuple):
    """All runs below a folder, and what was meant to be there."""

    runs: list[Run]
    envs: list[str]
    methods: list[str]
    missing: list[str]  # titles of cells that nothing is there of
    unevaluated: list[str]  # titles of cells that are trained, without scores
    experiment: dict[str, Any]  # experiment.json, empty if there is none

    def of(self, env: str, method: str) -> list[Run]:
        """Runs of a cell, by seed."""
        return [run for run in self.runs if (run.env, run.method) == (env, method)]


def read_study(folder: Path) -> Study:
    """Find and read the runs below a folder.

    Raises:
        UserError: there is none, a file is damaged, or runs of one environment have different scales.
    """
    experiment = _read_experiment(folder / "experiment.json")
    runs, trained = [], set()
    for place in sorted(folder.glob("*/*/seed*")):
        if not re.fullmatch(r"seed(0|[1-9]\d*)", place.name):
            continue
        cell = (place.parts[-3], place.parts[-2], int(place.name.removeprefix("seed")))
        if (place / "scores.json").is_file():
            runs.append(Run(place, *cell, _read_scores(place / "scores.json")))
        elif (place / "args.json").is_file():
            trained.add(cell)
    if not runs:
        raise UserError(
            f"{folder} holds no <env>/<method>/seed<k>/scores.json: train and evaluate first, "
            "python -m camal_rl.experiment."
        )
    planned = [Path(env).stem if env.endswith(".toml") else env for env in experiment.get("envs", ())]
    envs = in_order(planned, [*planned, *(run.env for run in runs)])
    asked = experiment.get("methods", ())
    methods = in_order(asked, [*asked, *(run.method for run in runs)])
    seeds = sorted({run.seed for run in runs} | set(experiment.get("seeds", ())))
    rank = {(env, method): (i, j) for i, env in enumerate(envs) for j, method in enumerate(methods)}
    runs.sort(key=lambda run: (rank[run.env, run.method], run.seed))
    have = {(run.env, run.method, run.seed) for run in runs}
    absent = [
        cell
        for env in envs
        for method in methods
        for seed in seeds
        if (cell := (env, method, seed)) not in have
    ]
    missing = [f"{cell[0]}/{cell[1]}/seed{cell[2]}" for cell in absent if cell not in trained]
    unevaluated = [f"{cell[0]}/{cell[1]}/seed{cell[2]}" for cell in absent if cell in trained]
    for env in envs:
        scales: dict[tuple[float, float], Run] = {}
        for run in runs:
            if run.env == env:
                scales.setdefault(run.scale, run)
        if len(scales) > 1:
            one, other, *_ = scales.values()
            raise UserError(
                f"{one.title} and {other.title} measure returns on different scales (random and reference "
                f"return {one.scale} and {other.scale}): evaluate runs of the same definition of {env}."
            )
    return Study(runs, envs, methods, missing, unevaluated, experiment)


def in_order(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """Each name that was found, once: the known ones first, in their order, then the others by alphabet."""
    there = set(found)
    first = [name for name in dict.fromkeys(known) if name in there]
    return [*first, *sorted(there.difference(first))]


def _at(content: Any, path: str) -> Any:
    for name in path.split("."):
        content = content[name]
    return content


def _read_json(file: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets nested without end
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"can't read {file}: {problem}. {hint}") from error
    if not isinstance(content, dict):
        raise UserError(f"can't read {file}: it is not an object. {hint}")
    return content


def _read_experiment(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    hint = "Run python -m camal_rl.experiment again, or delete it."
    content = _read_json(file, hint)
    kinds = {"envs": str, "methods": str, "seeds": int, "train": str, "evaluate": str}
    for name, kind in kinds.items():
        values = content.get(name)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise UserError(f"can't read {file}: {name} is not a list of {kind.__name__}. {hint}")
    return content


def _read_scores(file: Path) -> dict[str, Any]:
    hint = f"Evaluate again: python -m camal_rl.evaluate {file.parent}"
    scores = _read_json(file, hint)
    definition = "training.definition"
    fractions = ("iou", "iou_ceiling", "dead_map_fraction")
    needed = ("steps", "return.mean", f"{definition}.random_return", f"{definition}.reference_return")
    for path in (*fractions, *needed):
        try:
            value = _at(scores, path)
        except (KeyError, TypeError, IndexError):
            raise UserError(f"{file} has no {path}. {hint}") from None
        if value is None and path in ("iou", "iou_ceiling"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
            raise UserError(f"{file}: {path} is {value!r}, not a number. {hint}")
        if path in fractions and not 0 <= value <= 1:
            raise UserError(f"{file}: {path} is {value!r}, not between 0 and 1. {hint}")
    if scores["steps"] < 1:
        raise UserError(f"{file}: steps is {scores['steps']}, so nothing was trained. {hint}")
    if scores.get("format") != FORMAT:
        raise UserError(f"{file} has format {scores.get('format')!r}, this version reads {FORMAT}. {hint}")
    if not isinstance(scores.get("episodes"), list) or not isinstance(scores.get("settings"), dict):
        raise UserError(f"{file} has no episodes or settings. {hint}")
    for path, group in (
        ("settings.versions", scores["settings"].get("versions")),
        ("undefined", scores.get("undefined")),
    ):
        if not isinstance(group, dict | None):
            raise UserError(f"{file}: {path} is {group!r}, not an object. {hint}")
    if not _at(scores, f"{definition}.random_return") < _at(scores, f"{definition}.reference_return"):
        raise UserError(f"{file}: the reference return is not above the random one. {hint}")
    return scores


# ------------------------------------------------------------------------------------------------------------
# What makes runs hard to compare


def comparability(study: Study) -> list[str]:
    """A sentence on each way in which the runs differ though only method, seed and environment should."""
    sentences = []
    for run in study.runs:
        said = f"{run.scores.get('env')}/{run.scores.get('method')}/seed{run.scores.get('seed')}"
        if said != run.title:
            sentences.append(f"The folder {run.title} holds scores of {said}; the folder's name is used.")
    evaluation = ("episodes", "seed", "greedy", "max_steps", "tau", "attention")
    sentences += _differences(
        study.runs,
        lambda run: {name: run.scores["settings"].get(name) for name in evaluation},
        "Not comparable: runs were evaluated differently.",
    )
    sentences += _differences(
        study.runs, lambda run: training(run.scores), "Not comparable: runs were trained differently."
    )
    sentences += _differences(
        study.runs,
        lambda run: {"steps": run.scores["steps"]},
        "Not comparable: runs were trained for different numbers of agent steps.",
    )
    for env in study.envs:
        sentences += _differences(
            [run for run in study.runs if run.env == env],
            lambda run: run.scores["training"]["definition"],
            f"Not comparable: runs of {env} have different definitions of it.",
        )
    sentences += _differences(study.runs, versions, "Versions differ between runs.")
    return sentences


def training(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a training by dotted name, but for those that every run has of its own."""
    return {
        f"{group}.{name}": value
        for group, options in scores["training"].items()
        if isinstance(options, dict) and group != "definition"
        for name, value in options.items()
        if (group, name) not in (("run", "env"), ("run", "method"), ("run", "seed"))
    }


def versions(run: Run) -> dict[str, Any]:
    """What the run was evaluated with."""
    return dict(run.scores["settings"].get("versions") or {})


def _differences(runs: Sequence[Run], values: Callable[[Run], Mapping[str, Any]], sentence: str) -> list[str]:
    parts = differences({run.title: values(run) for run in runs}, "runs")
    return [f"{sentence} {'; '.join(parts)}."] if parts else []


def differences(options: Mapping[str, Mapping[str, Any]], unit: str) -> list[str]:
    """In which options runs differ, and which of them: "seed is 1 (7 runs) and 2 (A/camal/seed3)".

    Args:
        options: by name, of each run by its title; one that a run lacks counts as null.
        unit: what runs are called.
    """
    parts = []
    for name in dict.fromkeys(name for one in options.values() for name in one):
        groups: dict[str, list[str]] = {}
        for title, one in options.items():
            groups.setdefault(json.dumps(one.get(name)), []).append(title)
        if len(groups) > 1:
            common, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
            told = [f"{common[0]} ({len(common[1])} {unit})"]
            told += [f"{value} ({some(titles)})" for value, titles in others]
            parts.append(f"{name} is {' and '.join(told)}")
    return parts


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# ------------------------------------------------------------------------------------------------------------
# Learning curves


def read_events(folder: Path, tags: Sequence[str]) -> dict[str, np.ndarray]:
    """What a training logged under these tags, float64 (N, 2): agent step and value.

    As TensorBoard's EventAccumulator does, a training that went on drops what an earlier process had logged
    beyond its checkpoint. That class checks every record's sum in Python, which takes minutes for the
    millions of episodes of a long run; here other tags are passed by unread.

    Raises:
        UserError: a file is damaged. A last record that is cut off, as in a run that still goes on, is left.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    found: dict[str, list[tuple[int, float]]] = {tag: [] for tag in tags}
    wanted = [tag.encode() for tag in tags]
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(file.read_bytes()):
            is_wanted = any(tag in record for tag in wanted)
            if not is_wanted and len(record) > 64:  # longer than the note that a process started
                continue
            try:
                event = Event.FromString(record)
            except DecodeError as error:
                raise UserError(f"{file} is damaged: move it away to report without its curves.") from error
            if event.session_log.status == SessionLog.START:
                for tag, points in found.items():
                    found[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value if is_wanted else ():
                if value.tag in found:
                    found[value.tag].append((event.step, value.simple_value))
    return {tag: np.array(points, np.float64).reshape(-1, 2) for tag, points in found.items()}


def _records(content: bytes) -> Iterator[bytes]:
    """TFRecord's framing: length, its sum, data, its sum; the last record may be cut off."""
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + length]
        if len(data) < length:
            return
        yield data
        place += 16 + length


def curve(points_N2: np.ndarray, edges: np.ndarray, end: float) -> np.ndarray:
    """Mean of what was logged in each window and its two neighbours, float64 (S,); NaN where nothing was.

    Args:
        points_N2: agent step and value, those that are finite count.
        edges: (S + 1,) agent steps; window s is (edges[s], edges[s + 1]].
        end: the run's last agent step; windows that begin there have no value.
    """
    points_N2 = points_N2[np.isfinite(points_N2).all(axis=1)]
    window = np.searchsorted(edges, points_N2[:, 0], side="left") - 1
    inside = (window >= 0) & (window < len(edges) - 1)
    window, values = window[inside], points_N2[inside, 1]
    size = len(edges) - 1
    counts = np.convolve(np.bincount(window, minlength=size), [1, 1, 1])[1:-1]
    sums = np.convolve(np.bincount(window, values, minlength=size), [1, 1, 1])[1:-1]
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    means[edges[:-1] >= end] = np.nan
    return means
