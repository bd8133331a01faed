"""Cells of an experiment's matrix: one run folder each, trained and evaluated in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from tqdm import tqdm

from camal_rl.run import machine

if sys.version_info >= (3, 11):
    pass
else:
    pass


CELL_MEMORY = 1.5 * 2**30
"""Bytes that a cell may need: 0.6 GiB with the default sizes, measured, and room for larger ones."""


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
