"""Environments x methods x seeds: trains and evaluates every cell, on this machine or on a Ray cluster.

A cell is one run folder, trained by `camal_rl.ppo` and evaluated by `camal_rl.evaluate` in processes of their
own. What is there already is not done again, so the same command goes on after any interruption.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple

import tyro
from tqdm import tqdm

from camal_rl import (
    UserError,
    __version__,
    machine,
    make_folder,
    print_mistake,
    refuse_options,
    split_arguments,
    write_whole,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, tyro.conf.arg(metavar="N")]
CELL_MEMORY = 1.5 * 2**30
"""Bytes that a cell may need: 0.6 GiB with the default sizes, measured, and room for larger ones."""


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


class Cell(NamedTuple):
    """One run of the matrix."""

    folder: Path
    """<runs-dir>/<env>/<method>/seed<k>."""
    train: tuple[str, ...]
    """Its options of `camal_rl.ppo`, but for the runs-dir."""
    evaluate: tuple[str, ...]
    """Its options of `camal_rl.evaluate`, but for the folder."""
    steps: int
    """Agent steps when it is trained."""
    trained: dict[str, dict[str, Any]]
    """What its args.json says."""

    @property
    def title(self) -> str:
        """Environment, method and seed."""
        return "/".join(self.folder.parts[-3:])


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


def is_done(cell: Cell) -> bool:
    """Whether a cell is trained to its last step and evaluated as it is to be."""
    from camal_rl import evaluate

    try:
        scores = json.loads((cell.folder / "scores.json").read_text(encoding="utf-8"))
        wanted = evaluate.wanted_settings(evaluate.parse_args([str(cell.folder), *cell.evaluate]))
        settings = scores["settings"]
        shifts = set(wanted.pop("shift"))
        if wanted["attention"] is None:
            wanted["attention"] = cell.trained["attention"]["attention"]
        return bool(
            scores["steps"] == cell.steps
            and _same_training(scores["training"], cell.trained)
            and all(settings[name] == value for name, value in wanted.items())
            and set(settings["shift"]) >= shifts
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _same_training(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    groups = (set(one) | set(other)) - {"machine"}  # another machine's run is a run as well
    return all(one.get(group) == other.get(group) for group in groups)


# ------------------------------------------------------------------------------------------------------------
# Running


class Outcome(NamedTuple):
    """How a cell ended."""

    cell: Cell
    status: Literal["done", "failed", "stopped"]
    seconds: float
    message: str  # the last line of its log, if it failed


# A process asks to be stopped when the thread that started it ends, however that comes: a run that goes on
# alone would share its folder with the next one. prctl(PR_SET_PDEATHSIG, SIGTERM) is Linux's.
_LAUNCH = """
import ctypes, os, runpy, sys
parent, module = int(sys.argv[1]), sys.argv[2]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != parent:
    sys.exit(143)
sys.argv[1:3] = []
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Runner:
    """Runs cells in processes of their own, and knows how far each has come."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.stopping = threading.Event()
        """Every process is asked to save and end."""
        self.killing = threading.Event()
        """Every process is ended at once."""
        self.running: dict[Path, tuple[Cell, str, int]] = {}
        """Cells in work by folder, with the module that runs and where in the log its output begins."""

    def run(self, cell: Cell) -> Outcome:
        """Train and evaluate one cell, and again if it fails; called by several threads."""
        began = time.monotonic()
        if self.stopping.is_set():
            return Outcome(cell, "stopped", 0, "")
        try:
            code = self._attempts(cell)
            message = ""
            if code:
                message = last_line(cell)
            elif not is_done(cell):
                message = "it ended without an error, but its scores.json is not what was asked for"
        except OSError as error:  # a full disk, a file where a folder should be
            code, message = 1, f"{error.filename or cell.folder}: {error.strerror or error}"
        finally:
            self.running.pop(cell.folder, None)
        seconds = time.monotonic() - began
        if code and self.stopping.is_set():
            return Outcome(cell, "stopped", seconds, "")
        return Outcome(cell, "failed" if message or code else "done", seconds, message)

    def _attempts(self, cell: Cell) -> int:
        train = (*cell.train, "--runs-dir", str(cell.folder.parents[2]))
        evaluation = (str(cell.folder), *cell.evaluate)
        cell.folder.mkdir(parents=True, exist_ok=True)
        with log_of(cell).open("ab") as log:
            for _ in range(1 + self.retries):
                code = self._process(cell, "ppo", train, log)
                code = code or self._process(cell, "evaluate", evaluation, log)
                if code in (0, 2) or self.stopping.is_set():  # 2: the user has to mend something first
                    break
        return code

    def _process(self, cell: Cell, module: str, options: Sequence[str], log: IO[bytes]) -> int:
        log.write(f"$ python -m camal_rl.{module} {' '.join(options)}\n".encode())
        log.flush()
        self.running[cell.folder] = (cell, module, log.tell())
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(os.getpid()), f"camal_rl.{module}", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which tells the others once
        )
        asked = False
        while process.poll() is None:
            time.sleep(0.1)
            if self.killing.is_set():
                process.kill()
            elif self.stopping.is_set() and not asked:
                process.terminate()
                asked = True
        return process.returncode

    def progress(self) -> dict[str, float | None]:
        """How far each cell in work has come, by title, from 0 to 1; None before it says so.

        It is read from the progress bar in the log.
        """
        return {
            cell.title: TRAINING_SHARE if module == "evaluate" else _trained(log_of(cell), place)
            for cell, module, place in list(self.running.values())
        }


def log_of(cell: Cell) -> Path:
    """Where the processes of a cell print."""
    return cell.folder / "experiment.log"


def last_line(cell: Cell) -> str:
    """The last line in a cell's log."""
    lines = re.split(r"[\r\n]+", log_of(cell).read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] if lines else ""


def _trained(log: Path, place: int) -> float | None:
    """How much of its cell a training has done, by what its log says beyond `place`."""
    try:
        with log.open("rb") as file:
            file.seek(max(place, file.seek(0, os.SEEK_END) - 4096))
            percents = re.findall(rb"(\d+)%\|", file.read())
    except OSError:
        return None
    return TRAINING_SHARE * int(percents[-1]) / 100 if percents else None


TRAINING_SHARE = 0.9
"""Of a cell's time; the rest is evaluation."""


def bearable_jobs() -> int:
    """How many cells at once: one a core, as long as there is memory for them."""
    memory = machine.available_memory()
    return machine.cores() if memory is None else max(1, min(machine.cores(), int(memory // CELL_MEMORY)))


class Display:
    """The progress of a matrix: a bar with the time left, and a line for each cell that ended.

    The time left is reckoned from what this process has seen done: a cell that goes on from a checkpoint
    counts from there, and one that failed is no longer waited for.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.failed = 0
        self.began = time.monotonic()
        self.first: dict[str, float] = {}
        """How far each cell had come when that was first known, by title."""
        self.worked = 0.0
        """Cells' worth of work by those that ended."""
        self.bar = tqdm(
            total=total,
            initial=done,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.refresh()
        self.bar.close()

    def ended(self, outcome: Outcome) -> None:
        """Count and name a cell that ended."""
        self.done += outcome.status == "done"
        self.failed += outcome.status == "failed"
        if outcome.status == "done":
            self.worked += 1 - self.first.get(outcome.cell.title, 0)
        self.first.pop(outcome.cell.title, None)
        self.bar.write(describe(outcome), file=sys.stderr)

    def left(self, running: Mapping[str, float | None]) -> float | None:
        """Seconds until all is done if it goes on as so far; None before anything has."""
        known = {title: fraction for title, fraction in running.items() if fraction is not None}
        for title, fraction in known.items():
            self.first.setdefault(title, fraction)
        worked = self.worked + sum(fraction - self.first[title] for title, fraction in known.items())
        if worked <= 0:
            return None
        remaining = self.total - self.done - self.failed - sum(known.values())
        return (time.monotonic() - self.began) * remaining / worked

    def show(self, running: Mapping[str, float | None]) -> None:
        """Show how far the running cells have come, by title, from 0 to 1."""
        left = self.left(running)
        self.bar.n = self.done + sum(fraction or 0 for fraction in running.values())
        states = [f"{title} {fraction or 0:.0%}" for title, fraction in running.items()]
        states = [f"{self.done}/{self.total} runs", *states]
        remaining = "?" if left is None else tqdm.format_interval(left)
        self.bar.set_description_str(f"{remaining} left, {', '.join(states)}", refresh=False)
        self.bar.update(0)


def run_here(missing: Sequence[Cell], total: int, jobs: int, runner: Runner) -> list[Outcome]:
    """Run cells on this machine, `jobs` at once; `total` counts those that were done before as well."""
    outcomes: list[Outcome] = []
    with Display(total, total - len(missing)) as display, ThreadPoolExecutor(jobs) as threads:
        waiting = [threads.submit(runner.run, cell) for cell in missing]
        try:
            while waiting:
                time.sleep(0.2)
                for one in [one for one in waiting if one.done()]:
                    waiting.remove(one)
                    outcomes.append(one.result())
                    display.ended(outcomes[-1])
                display.show(runner.progress())
        except KeyboardInterrupt:
            runner.killing.set()
            raise
    return outcomes


def describe(outcome: Outcome) -> str:
    """One line on how a cell ended."""
    minutes, seconds = divmod(round(outcome.seconds), 60)
    if outcome.status == "stopped":
        return f"stopped {outcome.cell.title}"
    if outcome.status == "failed":
        return (
            f"failed  {outcome.cell.title} after {minutes}:{seconds:02}: "
            f"{outcome.message} ({log_of(outcome.cell)})"
        )
    scores = json.loads((outcome.cell.folder / "scores.json").read_text(encoding="utf-8"))
    iou = "none" if scores["iou"] is None else f"{scores['iou']:.3f}"
    total = scores["return"]["mean"]
    return f"done    {outcome.cell.title} in {minutes}:{seconds:02}: return {total:.2f}, IoU {iou}"


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
        from camal_rl import cluster

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
