"""The runs below a folder: scores and learning curves, read and checked, and what makes runs hard to compare.

Everything comes from files that `camal_rl.evaluate`, `camal_rl.experiment` and the trainer left behind.
"""
# ruff: noqa: N803, N806 - axis suffixes are capitals

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError, model_validator

from camal_rl import stats
from camal_rl.errors import UserError

# ------------------------------------------------------------------------------------------------------------
# Files


class Content(BaseModel):
    """Content of a JSON file, as far as a report uses it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
"""A number in [0, 1], up to the rounding of single precision."""


class Definition(Content, extra="allow"):
    """An environment's definition; only the scale of its returns is used by name."""

    random_return: float
    reference_return: float

    @model_validator(mode="after")
    def _check_scale(self) -> Definition:
        if self.random_return >= self.reference_return:
            raise ValueError("the reference return is not above the random one")
        return self


class Training(Content):
    """The options that a run was trained with, by name, and its environment's definition."""

    args: dict[str, Any]
    definition: Definition

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, described: Any) -> Any:
        return {**described, "args": options(described)} if isinstance(described, dict) else described


class Shifted(Content):
    """The scores of a run under another look of the game."""

    mean_return: float = Field(validation_alias=AliasPath("return", "mean"))


def _area(reference: str, change: str) -> Any:
    """The area under a curve of faithfulness, of pixels in attention's order; None where there is none."""
    path = AliasPath("faithfulness", reference, "attention", change, "value_change", "area")
    return Field(None, validation_alias=path)


class Scores(Content):
    """The fields of a run's scores.json; a measure of attention is None where no target was in view."""

    format: Literal[1]
    env: str
    method: str
    name: str
    seed: int
    steps: int = Field(gt=0, lt=2**63)
    mean_return: float = Field(validation_alias=AliasPath("return", "mean"))
    iou: Fraction | None
    iou_mask: Fraction | None
    iou_constant: Fraction | None = None
    iou_gradcam: Fraction | None = None
    dead_map_fraction: Fraction | None
    removal_black: float | None = _area("black", "removal")
    insertion_black: float | None = _area("black", "insertion")
    removal_blurred: float | None = _area("blurred", "removal")
    insertion_blurred: float | None = _area("blurred", "insertion")
    shift: dict[str, Shifted] = {}
    episodes: list[Any]
    settings: dict[str, Any]
    training: Training
    undefined: dict[str, Any] | None = None


MEASURES = (
    *("iou", "iou_mask", "iou_constant", "iou_gradcam", "dead_map_fraction"),
    *("removal_black", "insertion_black", "removal_blurred", "insertion_blurred"),
)
"""Fields of `Scores` on attention; each is None where it was not or could not be measured."""


class Experiment(Content):
    """The matrix of runs that experiment.json asks for."""

    envs: list[str] = []
    methods: list[str] = []
    variants: dict[str, Any] = {}
    seeds: list[int] = []


def options(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by name from args.json, or from "training" of scores.json.

    With those of the groups beside "args", on the code that trained it and how.
    """
    return {
        name: value
        for group, values in described.items()
        if group != "definition" and isinstance(values, dict)
        for name, value in values.items()
    }


C = TypeVar("C", bound=Content)


def read_content(path: Path, kind: type[C], hint: str) -> C:
    """Read and check a JSON file.

    Args:
        hint: a sentence on what to do where that fails.

    Raises:
        UserError: it can't be read, or something in it is missing or of a wrong type.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    raise UserError(f"can't read {path}: {reason}. {hint}")


# ------------------------------------------------------------------------------------------------------------
# Runs


class Run(NamedTuple):
    """A run that was evaluated. Its folder says what it is; `method` is the name of its row there."""

    folder: Path
    env: str
    method: str
    seed: int
    scores: Scores

    @property
    def title(self) -> str:
        """Environment, method and seed."""
        return f"{self.env}/{self.method}/seed{self.seed}"

    @property
    def said(self) -> str:
        """The title of the run that the scores are of."""
        return f"{self.scores.env}/{self.scores.name}/seed{self.scores.seed}"

    @property
    def scale(self) -> tuple[float, float]:
        """The environment's random and reference return."""
        definition = self.scores.training.definition
        return definition.random_return, definition.reference_return


@dataclass(frozen=True)
class Study:
    """All runs below a folder, and what was meant to be there."""

    runs: list[Run]
    envs: list[str]
    methods: list[str]
    missing: list[str]  # titles of runs of which there is nothing
    unevaluated: list[str]  # titles of runs that are trained, without scores
    copies: list[str]  # titles of folders that hold another run's scores, and are left out
    scales: dict[str, tuple[float, float]]  # random and reference return by environment

    def of(self, env: str, method: str) -> list[Run]:
        """Runs of a cell, by seed."""
        return [run for run in self.runs if (run.env, run.method) == (env, method)]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a run: what it is, and its numbers, NaN where there is none."""
        looks = sorted(set.intersection(*(set(run.scores.shift) for run in self.runs)))

        def normalized(run: Run, raw: Sequence[float]) -> float:
            return float(stats.normalize(np.array(raw), *run.scale).mean()) if raw else np.nan

        rows = [
            {
                "environment": run.env,
                "method": run.method,
                "seed": run.seed,
                "return": run.scores.mean_return,
                "normalized_return": normalized(run, [run.scores.mean_return]),
                **{name: getattr(run.scores, name) for name in MEASURES},
                "shifted_return": normalized(run, [run.scores.shift[look].mean_return for look in looks]),
                "steps": run.scores.steps,
                "episodes": len(run.scores.episodes),
            }
            for run in self.runs
        ]
        table = pd.DataFrame(rows).astype(dict.fromkeys(MEASURES, float))
        return table.assign(lost_return=table["normalized_return"] - table["shifted_return"])

    def mean(self, column: str, **where: str) -> float:
        """Mean of a number over the runs with this environment, method or both; NaN where there is none."""
        table = self.table
        for name, value in where.items():
            table = table[table[name] == value]
        return float(table[column].mean())


def pivot(table: pd.DataFrame, method: str, column: str, envs: Sequence[str]) -> pd.DataFrame:
    """Return seeds x environments of a column of `Study.table` for a method; NaN where a run is missing."""
    chosen = table[table["method"] == method]
    matrix: pd.DataFrame = chosen.pivot(index="seed", columns="environment", values=column)
    return matrix.reindex(columns=envs)


def read_study(folder: Path) -> Study:
    """Find and read the runs below a folder.

    Raises:
        UserError: there is none, a file is damaged, or runs of one environment have different scales.
    """
    file = folder / "experiment.json"
    hint = "Run python -m camal_rl.experiment again, or delete it."
    planned = read_content(file, Experiment, hint) if file.is_file() else Experiment()
    runs, trained = [], set()
    for place in sorted(folder.glob("[!.]*/[!.]*/seed*")):
        if not re.fullmatch(r"seed(0|[1-9]\d*)", place.name):
            continue
        cell = (place.parts[-3], place.parts[-2], int(place.name.removeprefix("seed")))
        if (place / "scores.json").is_file():
            again = f"Evaluate again: python -m camal_rl.evaluate {place}"
            runs.append(Run(place, *cell, read_content(place / "scores.json", Scores, again)))
        elif (place / "args.json").is_file():
            trained.add(cell)
    scores = {run.title: run.scores for run in runs}
    copies = [
        run.title
        for run in runs
        if run.env != run.scores.env or (run.title != run.said and run.scores == scores.get(run.said))
    ]
    runs = [run for run in runs if run.title not in copies]
    if not runs:
        raise UserError(
            f"{folder} holds no scores.json of a run <env>/<name>/seed<k>: train and evaluate first, "
            "python -m camal_rl.experiment."
        )
    asked = [Path(env).stem if env.endswith(".toml") else env for env in planned.envs]
    envs = in_order(asked, [*asked, *(run.env for run in runs)])
    rows = [*planned.methods, *planned.variants]
    methods = in_order(rows, [*rows, *(run.method for run in runs)])
    seeds = sorted({run.seed for run in runs} | set(planned.seeds))
    runs.sort(key=lambda run: (envs.index(run.env), methods.index(run.method), run.seed))
    have = {run[1:4] for run in runs}
    absent = {c: "{}/{}/seed{}".format(*c) for c in product(envs, methods, seeds) if c not in have}
    missing = [title for cell, title in absent.items() if cell not in trained]
    unevaluated = [title for cell, title in absent.items() if cell in trained]
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.env, run)
        if run.scale != other.scale:
            raise UserError(
                f"{other.title} and {run.title} measure returns on different scales (random and reference "
                f"return {other.scale} and {run.scale}): evaluate runs of the same definition of {run.env}."
            )
    scales = {env: run.scale for env, run in first.items()}
    return Study(runs, envs, methods, missing, unevaluated, copies, scales)


def in_order(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """Each name that was found, once: the known ones first, in their order, then the others by alphabet."""
    there = set(found)
    first = [name for name in dict.fromkeys(known) if name in there]
    return [*first, *sorted(there.difference(first))]


# ------------------------------------------------------------------------------------------------------------
# What makes runs hard to compare


def comparability(study: Study) -> list[str]:
    """Return a sentence on each way in which runs differ though only method, seed and environment should."""
    runs, sentences = study.runs, []
    if study.copies:
        sentences.append(f"Left out as copies: {some(study.copies)} hold scores of other folders.")
    for run in runs:
        if run.said != run.title:
            sentences.append(f"The folder {run.title} holds scores of {run.said}; the folder's name is used.")
        if "trained_on_from" in run.scores.training.args:
            sentences.append(
                f"{run.title} went on for longer than planned, with a learning rate that rose again, and is "
                "not what as many steps from the start would give."
            )
    names = ("episodes", "seed", "greedy", "max_steps", "tau", "attention")
    evaluation = {run.title: {name: run.scores.settings.get(name) for name in names} for run in runs}
    for run in runs:
        if run.scores.settings.get("attention") == run.scores.training.args.get("attention"):
            evaluation[run.title]["attention"] = "that of training"
    sentences += differences("Not comparable: runs were evaluated differently.", evaluation)
    trained = {r.title: {"agent steps": r.scores.steps} | by_row(r.method, training(r)) for r in runs}
    sentences += differences("Not comparable: runs were trained differently.", trained)
    for env in study.envs:
        of_env = {run.title: run.scores.training.definition.model_dump() for run in runs if run.env == env}
        sentences += differences(f"Not comparable: runs of {env} have different definitions of it.", of_env)
    return sentences + differences("Versions differ between runs.", {r.title: versions(r) for r in runs})


def by_row(row: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names to compare them by; those of a variant, its method among them, are its own.

    A variant is a row that is not called as its method: it may have other options, and all its runs the same.
    """
    own = f" of {row}" if row != options["method"] else ""
    return {f"{name}{own}": value for name, value in options.items() if own or name != "method"}


def variants(sentence: str, trained: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Go on from a sentence with the options in which rows differ, if one of them is a variant.

    Args:
        sentence: as of `differences`.
        trained: row and options, with the method, of each run.
    """
    first = dict(reversed(trained))
    if all(row == options["method"] for row, options in first.items()):
        return []
    return differences(sentence, {row: first[row] for row, _ in trained}, "rows")


def training(run: Run) -> dict[str, Any]:
    """Method and options of a run's training by name, but for those that every run has of its own."""
    known, own = run.scores.training.args, ("env", "method", "name", "seed", "code")
    return {name: value for name, value in known.items() if name not in own} | {"method": run.scores.method}


def versions(run: Run) -> dict[str, Any]:
    """Versions of the software that evaluated the run, and hashes of the code that trained it."""
    found = run.scores.settings.get("versions")
    code = run.scores.training.args.get("code")
    return (found if isinstance(found, dict) else {}) | ({"code of training": code} if code else {})


def differences(sentence: str, options: Mapping[str, Mapping[str, Any]], unit: str = "runs") -> list[str]:
    """Go on from a sentence with the options in which runs differ; empty where they don't.

    Args:
        sentence: to go on from, such as with "seed is 1 (7 runs) and 2 (A/camal/seed3)."
        options: by name, of each run by its title; runs that lack one are not compared by it.
        unit: what runs are called.
    """
    parts = []
    for name in dict.fromkeys(name for known in options.values() for name in known):
        groups: dict[str, list[str]] = {}
        for title, known in options.items():
            if name in known:
                groups.setdefault(json.dumps(known[name]), []).append(title)
        if len(groups) > 1:
            common, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
            many = f"{len(common[1])} {unit}" if len(common[1]) > 1 else common[1][0]
            told = [f"{common[0]} ({many})"]
            told += [f"{value} ({some(titles)})" for value, titles in others]
            parts.append(f"{name} is {' and '.join(told)}")
    return [f"{sentence} {'; '.join(parts)}."] if parts else []


def some(names: Sequence[str]) -> str:
    """List the first four names, and say how many more there are."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


# ------------------------------------------------------------------------------------------------------------
# Learning curves


def read_curve(folder: Path, tag: str) -> np.ndarray:
    """Agent steps and values that a training logged under a tag, float64 (N, 2); N is 0 without curves.csv.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "curves.csv"
    if not file.is_file():
        return np.zeros((0, 2))
    try:
        logged = pd.read_csv(file, usecols=["tag", "step", "value"])
        points_N2: np.ndarray = logged[logged["tag"] == tag][["step", "value"]].to_numpy(np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: move it away to report without its curves.") from error
    return points_N2


def curve(points_N2: np.ndarray, edges: np.ndarray, end: float) -> np.ndarray:
    """Mean over each window in which something was logged and its two neighbours, float64 (S,); else NaN.

    Args:
        points_N2: agent step and value, those that are finite count.
        edges: (S + 1,) agent steps; window s is (edges[s], edges[s + 1]].
        end: the run's last agent step; windows that begin there have no value.
    """
    points_N2 = points_N2[np.isfinite(points_N2).all(axis=1)]
    window = np.searchsorted(edges, points_N2[:, 0], side="left") - 1
    inside = (window >= 0) & (window < len(edges) - 1)
    counts, sums = (
        np.bincount(window[inside], weights, minlength=len(edges) - 1)
        for weights in (None, points_N2[inside, 1])
    )
    beside = np.convolve(counts, [1, 1, 1])[1:-1]
    means: np.ndarray = np.convolve(sums, [1, 1, 1])[1:-1] / np.maximum(beside, 1)
    means[counts == 0] = np.nan
    means[edges[:-1] >= end] = np.nan
    return means
