"""Environments x methods x seeds: trains and evaluates every cell, on this machine or on a Ray cluster.

A cell is one run folder, trained by `camal_rl.ppo` and evaluated by `camal_rl.evaluate` in processes of their
own. What is there already is not done again, so the same command goes on after any interruption.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError, print_mistake
from camal_rl.run.command_line import refuse_options, split_arguments
from camal_rl.run.files import make_folder, write_whole
from camal_rl.run.runner import Cell, Outcome, Runner, bearable_jobs, describe, is_done, run_here

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass
class Args:
    """Train and evaluate environments x methods x seeds. Started again, it does only what is missing.

    Options after -- go to every training; python -m camal_rl.ppo --help lists them.
    """

    envs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = (
        "Basic",
        "DefendLine",
        "DefendCenter",
        "TakeCover",
    )
    """environments, or .toml files of your own"""
    methods: Annotated[tuple[Literal["camal", "vanilla", "suppress"], ...], tyro.conf.arg(metavar="NAME")] = (
        "camal",
        "vanilla",
    )
    """camal, vanilla, suppress; the first is shown beside the others"""
    seeds: Count = 5
    """runs of each environment and method: seeds 1 to N"""
    episodes: Count = 100
    """evaluation episodes of each run"""
    runs_dir: Path = Path("runs")
    """holds <env>/<method>/seed<k>, a folder for each run"""
    matrix: Annotated[Path | None, tyro.conf.arg(metavar="TOML")] = None
    """a file that says all this instead"""
    jobs: Count = 0
    """runs at once, 0 for as many as cores and memory bear"""
    retries: Count = 1
    """times that a run that failed is started again"""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster to run on: auto, or its address"""
    gpus: Annotated[float, tyro.conf.arg(metavar="X")] = 0.0
    """GPUs that each run asks of a Ray cluster, such as 0.25"""


def parse_args(arguments: Sequence[str] | None = None) -> tuple[Args, list[str]]:
    """Read the command line: own options, and those after `--`, which are for training."""
    own, train = split_arguments(arguments)
    return tyro.cli(Args, prog="python -m camal_rl.experiment", args=own), train


class Matrix(NamedTuple):
    """What is to be done."""

    envs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    runs_dir: Path
    train: tuple[str, ...]  # options of camal_rl.ppo, the same for all runs
    evaluate: tuple[str, ...]  # options of camal_rl.evaluate


OWN = {"train": ("env", "method", "seed", "runs-dir"), "evaluate": ("run", "env", "compare", "output")}
"""Options that the matrix sets."""


def read_matrix(args: Args, train: Sequence[str]) -> Matrix:
    """The matrix of a command line, or of the TOML file it names.

    Raises:
        UserError: the file can't be read or says something else than a matrix; the message names what.
    """
    if args.matrix is None:
        return Matrix(
            args.envs,
            args.methods,
            tuple(range(1, args.seeds + 1)),
            args.runs_dir,
            tuple(train),
            ("--episodes", str(args.episodes)),
        )
    usual = Args()
    changed = [
        name
        for name in ("envs", "methods", "seeds", "episodes")
        if getattr(args, name) != getattr(usual, name)
    ]
    if args.runs_dir != usual.runs_dir:
        changed.append("runs_dir")
    if train or changed:
        raise UserError(
            f"{args.matrix} says what is done: leave out {', '.join(changed) or 'what follows --'}."
        )
    try:
        table = tomllib.loads(args.matrix.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"can't read the matrix {args.matrix}: {problem}.") from error
    types: dict[str, type | tuple[type, ...]] = {
        "envs": list,
        "methods": list,
        "seeds": (int, list),
        "runs_dir": str,
        "train": dict,
        "evaluate": dict,
    }
    for name, value in table.items():
        if name not in types:
            raise UserError(f"{args.matrix}: unknown key {name}; valid are {', '.join(types)}.")
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise UserError(f"{args.matrix}: {name} = {value!r} is of the wrong kind.")
    seeds = table.get("seeds", usual.seeds)
    numbers = list(range(1, seeds + 1)) if isinstance(seeds, int) else seeds
    words = [*table.get("envs", ()), *table.get("methods", ())]
    if not all(isinstance(one, str) for one in words) or not all(type(one) is int for one in numbers):
        raise UserError(
            f"{args.matrix}: envs and methods are lists of strings, seeds a number or a list of them."
        )
    return Matrix(
        tuple(table.get("envs", usual.envs)),
        tuple(table.get("methods", usual.methods)),
        tuple(numbers),
        Path(table.get("runs_dir", usual.runs_dir)),
        _options(table.get("train", {})),
        _options({"episodes": usual.episodes} | table.get("evaluate", {})),
    )


def _options(table: Mapping[str, Any]) -> tuple[str, ...]:
    """A TOML table as options of a command line."""
    options: list[str] = []
    for name, value in table.items():
        word = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{word}" if value else f"--no-{word}")
        else:
            options += [f"--{word}", *map(str, value if isinstance(value, list) else [value])]
    return tuple(options)


def cells(matrix: Matrix) -> list[Cell]:
    """All runs of a matrix, a seed of everything before the next seed.

    Raises:
        UserError: nothing to do, something twice, or a run that can't be trained or evaluated so.
        SystemExit: code 2, an option that `camal_rl.ppo` or `camal_rl.evaluate` does not understand.
    """
    from camal_rl import evaluate, ppo

    for name, values in (("envs", matrix.envs), ("methods", matrix.methods), ("seeds", matrix.seeds)):
        if not values:
            raise UserError(f"--{name}: name at least one.")
        if len(set(values)) < len(values):
            raise UserError(f"--{name}: {' '.join(map(str, values))} names one twice.")
    for kind, options in (("train", matrix.train), ("evaluate", matrix.evaluate)):
        refuse_options(OWN[kind], options, kind, "matrix")
    planned: list[Cell] = []
    for seed in matrix.seeds:
        for env in matrix.envs:
            for method in matrix.methods:
                own = ("--env", env, "--method", method, "--seed", str(seed), "--torch-threads", "1")
                train = (*own, *matrix.train)
                plan = ppo.plan(ppo.parse_args([*train, "--runs-dir", str(matrix.runs_dir)]))
                evaluation: tuple[str, ...] = (
                    "--torch-threads",
                    "1",
                    "--video-episodes",
                    "0",
                    *matrix.evaluate,
                )
                if env.endswith(".toml"):
                    evaluation += ("--env", env)
                evaluate.check_args(evaluate.parse_args([str(plan.folder), *evaluation]))
                if any(cell.folder == plan.folder for cell in planned):
                    raise UserError(
                        f"--envs: {env} and another one are both called {plan.definition.name}, and so would "
                        f"share the folder {plan.folder}. Name it once, or rename a file."
                    )
                steps = plan.iterations * plan.batch_size
                planned.append(Cell(plan.folder, train, evaluation, steps, plan.described))
    return planned


# ------------------------------------------------------------------------------------------------------------
# Running


class Beside(NamedTuple):
    """The first method shown beside another one."""

    cell: Cell
    """The first method's, whose evaluation shows it."""
    other: Cell
    picture: Path


def comparisons(matrix: Matrix, planned: Sequence[Cell]) -> list[Beside]:
    """What shows the first method beside each other one, with the first seed, in every environment.

    They are the first method's evaluations once more, which gives the same scores, with pictures and a video.
    """
    by_title = {cell.title: cell for cell in planned}
    shown = []
    for other_method in matrix.methods[1:]:
        for one in planned:
            env, method, seed = one.folder.parts[-3:]
            if method != matrix.methods[0] or seed != f"seed{matrix.seeds[0]}":
                continue
            other = by_title[f"{env}/{other_method}/{seed}"]
            options = [*one.evaluate, "--compare", str(other.folder)]
            if "--video-episodes" not in matrix.evaluate:
                options += ["--video-episodes", "1"]
            name = f"evaluation-versus-{other_method}-seed-{matrix.seeds[0]}.png"
            cell = one._replace(evaluate=tuple(options))
            shown.append(Beside(cell, other, one.folder / "media" / name))
    return shown


def run(
    matrix: Matrix,
    jobs: int = 0,
    retries: int = 1,
    stopped: threading.Event | None = None,
    ray: str | None = None,
    gpus: float = 0,
) -> int:
    """Do what is missing of a matrix, and return the exit code: 0, or 1 if a run failed, 130 if stopped."""
    planned = cells(matrix)
    missing = [cell for cell in planned if not is_done(cell)]
    _write_matrix(matrix)
    runner = Runner(retries)
    if stopped is not None:
        runner.stopping = stopped
    sizes = f"{len(matrix.envs)} environments x {len(matrix.methods)} methods x {len(matrix.seeds)} seeds"
    print(
        f"camal_rl {__version__}: {len(planned)} runs ({sizes}), {len(planned) - len(missing)} done\n"
        f"Run folders: {matrix.runs_dir}\n"
        f"TensorBoard: tensorboard --logdir {matrix.runs_dir}",
        flush=True,
    )
    for one in (beside := comparisons(matrix, planned)):
        if not (is_done(one.cell) and is_done(one.other)):  # they would show what is there no longer
            for file in (one.picture, one.picture.with_suffix(".mp4")):
                file.unlink(missing_ok=True)
    outcomes: list[Outcome] = []
    if missing and ray is not None:
        from camal_rl.run import cluster

        outcomes = cluster.run_on_ray(missing, len(planned), runner, ray, gpus, jobs)
    elif missing:
        outcomes = run_here(missing, len(planned), jobs or bearable_jobs(), runner)
    # One other method after the other: the evaluations of one run share its folder.
    for method in matrix.methods[1:]:
        to_show = [
            one.cell
            for one in beside
            if one.other.folder.parts[-2] == method
            and not one.picture.exists()
            and is_done(one.cell)
            and is_done(one.other)
        ]
        if to_show and not runner.stopping.is_set():
            print(f"Pictures and videos beside {method}:", flush=True)
            outcomes += run_here(to_show, len(to_show), jobs or bearable_jobs(), runner)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if runner.stopping.is_set():
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    for outcome in failed:
        print(describe(outcome), file=sys.stderr)
    done = sum(map(is_done, planned))
    print(f"{done} of {len(planned)} runs are done. Report: python -m camal_rl.report {matrix.runs_dir}")
    return 1 if failed else 0


def _write_matrix(matrix: Matrix) -> None:
    """Leave on record what was to be done, so that a report can say what is missing."""
    make_folder(matrix.runs_dir, "--runs-dir")
    content = {"version": __version__, **matrix._asdict()}
    del content["runs_dir"]  # it is where the file lies, wherever that is moved to
    write_whole(matrix.runs_dir / "experiment.json", (json.dumps(content, indent=1) + "\n").encode())


def main(args: Args, train: Sequence[str]) -> int:
    """Run the matrix; the exit code: 0, 1 if a run failed, 2 after a mistake, 130 or 143 if stopped."""
    stopping = threading.Event()
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        os.write(2, b"\nStopping: every run saves where it is; once more to stop at once.\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        for option, value, least in (
            ("seeds", args.seeds, 1),
            ("jobs", args.jobs, 0),
            ("retries", args.retries, 0),
            ("gpus", args.gpus, 0),
        ):
            if not value >= least:
                raise UserError(f"--{option} {value}: give a number of at least {least}.")
        if args.gpus and args.ray is None:
            raise UserError("--gpus is what a run asks of a Ray cluster: give --ray too, or leave it out.")
        code = run(read_matrix(args, train), args.jobs, args.retries, stopping, args.ray, args.gpus)
    except UserError as mistake:
        return print_mistake(mistake)
    except KeyboardInterrupt:
        print("Stopped at once. The same command goes on from the last checkpoints.", file=sys.stderr)
        code = 130
    return 128 + received[0] if received and code == 130 else code


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM):  # until `main` takes over
        signal.signal(_number, lambda number, _: os._exit(128 + number))
    # By its own name, because what a node of a cluster is sent is looked up there by name.
    from camal_rl import experiment

    sys.exit(experiment.main(*experiment.parse_args()))
