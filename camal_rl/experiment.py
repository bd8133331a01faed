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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple

import tyro
from tqdm import tqdm

from camal_rl import UserError, __version__, print_mistake, write_whole

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
    given = list(sys.argv[1:] if arguments is None else arguments)
    train: list[str] = []
    if "--" in given:
        place = given.index("--")
        given, train = given[:place], given[place + 1 :]
    return tyro.cli(Args, prog="python -m camal_rl.experiment", args=given), train


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


OWN = ("env", "method", "seed", "runs-dir")
"""Options of a training that the matrix sets."""


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
        Path(table.get("runs_dir", args.runs_dir)),
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
    for option in OWN:
        if any(one.replace("_", "-").split("=")[0] == f"--{option}" for one in matrix.train):
            raise UserError(f"--{option} can't be one of the options of training: the matrix sets it.")
    planned = []
    for seed in matrix.seeds:
        for env in matrix.envs:
            for method in matrix.methods:
                options = ("--env", env, "--method", method, "--seed", str(seed), "--torch-threads", "1")
                train = (*options, *matrix.train)
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
                steps = plan.iterations * plan.batch_size
                planned.append(Cell(plan.folder, train, evaluation, steps, plan.described))
    return planned


def is_done(cell: Cell) -> bool:
    """Whether a cell is trained to its last step and evaluated as it is to be."""
    from camal_rl import evaluate

    try:
        scores = json.loads((cell.folder / "scores.json").read_text(encoding="utf-8"))
        wanted = asdict(evaluate.parse_args([str(cell.folder), *cell.evaluate]))
        settings = scores["settings"]
        return bool(
            scores["steps"] == cell.steps
            and _same_training(scores["training"], cell.trained)
            and all(settings[name] == wanted[name] for name in ("episodes", "seed", "greedy", "max_steps"))
            and set(settings["shift"]) >= set(wanted["shift"] or ())
            and settings["faithfulness_frames"] == wanted["faithfulness_frames"]
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
        self.running: dict[Path, Cell] = {}
        """By folder."""

    def run(self, cell: Cell) -> Outcome:
        """Train and evaluate one cell, and again if it fails; called by several threads."""
        began = time.monotonic()
        if self.stopping.is_set():
            return Outcome(cell, "stopped", 0, "")
        self.running[cell.folder] = cell
        train = (*cell.train, "--runs-dir", str(cell.folder.parents[2]))
        evaluation = (str(cell.folder), *cell.evaluate)
        try:
            cell.folder.mkdir(parents=True, exist_ok=True)
            with log_of(cell).open("ab") as log:
                for _ in range(1 + self.retries):
                    code = self._process("ppo", train, log) or self._process("evaluate", evaluation, log)
                    if code in (0, 2) or self.stopping.is_set():  # 2: the user has to mend something first
                        break
            seconds = time.monotonic() - began
            if self.stopping.is_set() and code:
                return Outcome(cell, "stopped", seconds, "")
            return Outcome(cell, "failed" if code else "done", seconds, last_line(cell) if code else "")
        finally:
            del self.running[cell.folder]

    def _process(self, module: str, options: Sequence[str], log: IO[bytes]) -> int:
        log.write(f"$ python -m camal_rl.{module} {' '.join(options)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(os.getpid()), f"camal_rl.{module}", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which tells the others once
        )
        asked = False
        while process.poll() is None:
            time.sleep(0.1)
            if self.stopping.is_set() and not asked:
                process.terminate()
                asked = True
        return process.returncode


def log_of(cell: Cell) -> Path:
    """Where the processes of a cell print."""
    return cell.folder / "experiment.log"


def last_line(cell: Cell) -> str:
    """The last line in a cell's log."""
    lines = re.split(r"[\r\n]+", log_of(cell).read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] if lines else ""


def progress(cell: Cell) -> float:
    """How far a running cell has come, from 0 to 1, by the trainer's progress bar in its log."""
    try:
        with log_of(cell).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            tail = log.read().decode(errors="replace")
    except OSError:
        return 0.0
    command = tail.rfind("$ python")
    if "camal_rl.evaluate" in tail[command:].partition("\n")[0]:
        return TRAINING_SHARE
    percents = re.findall(r"(\d+)%\|", tail[max(command, 0) :])
    return TRAINING_SHARE * int(percents[-1]) / 100 if percents else 0.0


TRAINING_SHARE = 0.9
"""Of a cell's time; the rest is evaluation."""


def bearable_jobs() -> int:
    """How many cells at once: one a core, as long as there is memory for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not known on this system
        return cores
    return max(1, min(cores, int(available // CELL_MEMORY)))


class Display:
    """The progress of a matrix: a bar, and a line for each cell that ended."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.bar = tqdm(
            total=total,
            initial=done,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{percentage:3.0f}%|{bar}| {remaining} left{postfix}",
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.refresh()
        self.bar.close()

    def ended(self, outcome: Outcome) -> None:
        """Count and name a cell that ended."""
        self.done += outcome.status == "done"
        self.bar.write(describe(outcome), file=sys.stderr)

    def show(self, running: Mapping[str, float]) -> None:
        """Show how far the running cells have come, by title, from 0 to 1."""
        self.bar.n = self.done + sum(running.values())
        states = [f"{title} {fraction:.0%}" for title, fraction in running.items()]
        self.bar.set_postfix_str(", ".join([f"{self.done}/{self.total} runs", *states]), refresh=False)
        self.bar.update(0)


def run_here(missing: Sequence[Cell], total: int, jobs: int, runner: Runner) -> list[Outcome]:
    """Run cells on this machine, `jobs` at once; `total` counts those that were done before as well."""
    outcomes: list[Outcome] = []
    with Display(total, total - len(missing)) as display, ThreadPoolExecutor(jobs) as threads:
        waiting = [threads.submit(runner.run, cell) for cell in missing]
        while waiting:
            time.sleep(0.2)
            for one in [one for one in waiting if one.done()]:
                waiting.remove(one)
                outcomes.append(one.result())
                display.ended(outcomes[-1])
            display.show({cell.title: progress(cell) for cell in list(runner.running.values())})
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


def comparisons(matrix: Matrix, planned: Sequence[Cell]) -> list[Cell]:
    """What shows the first method beside each other one, with the first seed, in every environment.

    They are the first method's evaluations once more, which gives the same scores, with pictures and a video.
    """
    by_title = {cell.title: cell for cell in planned}
    shown = []
    for one in planned:
        env, method, seed = one.folder.parts[-3:]
        if method != matrix.methods[0] or seed != f"seed{matrix.seeds[0]}":
            continue
        for other in matrix.methods[1:]:
            beside = by_title[f"{env}/{other}/{seed}"]
            media = one.folder / "media" / f"evaluation-versus-{other}-seed-{matrix.seeds[0]}.mp4"
            options = [*one.evaluate, "--compare", str(beside.folder)]
            if "--video-episodes" not in matrix.evaluate:
                options += ["--video-episodes", "1"]
            if is_done(one) and is_done(beside) and not media.exists():
                shown.append(one._replace(evaluate=tuple(options)))
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
    outcomes: list[Outcome] = []
    if missing and ray is not None:
        from camal_rl import cluster

        outcomes = cluster.run_on_ray(missing, len(planned), runner, ray, gpus, jobs)
    elif missing:
        outcomes = run_here(missing, len(planned), jobs or bearable_jobs(), runner)
    beside = comparisons(matrix, planned)
    if beside and not runner.stopping.is_set():
        print("Pictures and videos of methods side by side:", flush=True)
        outcomes += run_here(beside, len(beside), jobs or bearable_jobs(), runner)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if runner.stopping.is_set():
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    for outcome in failed:
        print(describe(outcome), file=sys.stderr)
    done = len(planned) - len({outcome.cell.title for outcome in failed})
    print(f"{done} of {len(planned)} runs are done. Report: python -m camal_rl.report {matrix.runs_dir}")
    return 1 if failed else 0


def _write_matrix(matrix: Matrix) -> None:
    """Leave on record what was to be done, so that a report can say what is missing."""
    try:
        matrix.runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't make {matrix.runs_dir}: {error.strerror}. Choose another --runs-dir."
        ) from error
    content = {"version": __version__, **matrix._asdict(), "runs_dir": str(matrix.runs_dir)}
    write_whole(matrix.runs_dir / "experiment.json", (json.dumps(content, indent=1) + "\n").encode())


def main(args: Args, train: Sequence[str]) -> int:
    """Run the matrix, and return the exit code: 0, 1 if a run failed, 2 after a mistake, 130 if stopped."""
    stopping = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        os.write(2, b"\nStopping: every run saves where it is.\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        for option, value, least in (
            ("seeds", args.seeds, 1),
            ("jobs", args.jobs, 0),
            ("retries", args.retries, 0),
        ):
            if value < least:
                raise UserError(f"--{option} {value}: give a number of at least {least}.")
        return run(read_matrix(args, train), args.jobs, args.retries, stopping, args.ray, args.gpus)
    except UserError as mistake:
        return print_mistake(mistake)


if __name__ == "__main__":
    # By its own name, because what a node of a cluster is sent is looked up there by name.
    from camal_rl import experiment

    sys.exit(experiment.main(*experiment.parse_args()))
