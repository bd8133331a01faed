"""Cells of an experiment, one run folder each -> trained and evaluated runs, by processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from tqdm import tqdm

from camal_rl.run import machine

GAME = ("scenario", "frame_skip", "target_names", "target_categories")
"""Fields of an environment's definition that decide what is played and what a target is."""
LEARNED = (*GAME, "name", "reward_scale", "vizdoom")
"""Fields that decide what is learned; the others are texts, and the scale on which returns are told."""
CELL_MEMORY = 1.5 * 2**30
"""Bytes that a cell may need: 0.6 GiB with the default sizes, 1.3 on a GPU, measured, and room for more."""
EPISODE_STEPS, FRAME_STEPS = 150, 20
"""Agent steps of training that take as long as an episode, or a frame of faithfulness, of evaluation."""


class Cell(NamedTuple):
    """One run of an experiment."""

    folder: Path
    """<runs-dir>/<env>/<name>/seed<k>"""
    train: tuple[str, ...]
    """options of `camal_rl.ppo`, all but --runs-dir; none for a run that is shown beside another one"""
    evaluate: tuple[str, ...]
    """options of `camal_rl.evaluate`, all but the folder"""
    steps: int
    """agent steps at the end of training"""
    trained: dict[str, Any]
    """what `learned` finds in its args.json"""
    settings: dict[str, Any]
    """settings that its scores.json has to show"""

    @property
    def title(self) -> str:
        """The run's environment, name and seed."""
        return "/".join(self.folder.parts[-3:])

    @property
    def log(self) -> Path:
        """The file that the processes of the cell print to."""
        return self.folder / "experiment.log"


class Outcome(NamedTuple):
    """How a cell ended."""

    cell: Cell
    status: Literal["done", "failed", "stopped"]
    seconds: float
    message: str
    """the last line of its log, if it failed"""


def learned(described: Mapping[str, Any]) -> dict[str, Any]:
    """The options and the environment that decide what a run learns, from the content of its args.json.

    What differs from machine to machine is left out, and that a run went on for longer than planned.
    """
    machine = ("precision", "device_type")
    options = {name: value for name, value in described["args"].items() if name not in machine}
    definition = {name: described["definition"].get(name) for name in LEARNED}
    return {"args": options, "definition": definition}


def is_done(cell: Cell) -> bool:
    """Return whether a cell is trained to its last step and evaluated as it has to be."""
    try:
        scores = json.loads((cell.folder / "scores.json").read_text(encoding="utf-8"))
        settings = scores["settings"]
        return bool(
            scores["steps"] == cell.steps
            and learned(scores["training"]) == cell.trained
            and all(settings[name] == value for name, value in cell.settings.items() if name != "shift")
            and set(settings["shift"]) >= set(cell.settings["shift"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


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
    """Runs cells in processes of their own, and knows how far each has come.

    Args:
        retries: times that a cell which failed is started again.
        interrupted: asked several times a second, by several threads; once it returns True, every process is
            told to save and end, and no other one is started.
    """

    def __init__(self, retries: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.retries = retries
        self.interrupted = interrupted
        self.killing = threading.Event()
        """Set to end every process at once."""
        self.running: dict[Path, tuple[Cell, str, int]] = {}
        """Cells in work by folder, with the module that runs and where in the log its output begins."""

    def run(self, cell: Cell) -> Outcome:
        """Train and evaluate a cell, and again if it fails; called by several threads."""
        if self.interrupted():
            return Outcome(cell, "stopped", 0, "")
        began = time.monotonic()
        try:
            code, message = self._attempts(cell), ""
            if code:
                log = cell.log.read_text(encoding="utf-8", errors="replace")
                message = re.split(r"[\r\n]+", log.strip())[-1]
            elif not is_done(cell):
                message = "it ended without an error, but its scores.json is not what was asked for"
        except OSError as error:  # a full disk, a file where a folder should be
            code, message = 1, f"{error.filename or cell.folder}: {error.strerror or error}"
        finally:
            self.running.pop(cell.folder, None)
        seconds = time.monotonic() - began
        if code and self.interrupted():
            return Outcome(cell, "stopped", seconds, "")
        return Outcome(cell, "failed" if code or message else "done", seconds, message)

    def _attempts(self, cell: Cell) -> int:
        train = (*cell.train, "--runs-dir", str(cell.folder.parents[2]))
        evaluation = (str(cell.folder), *cell.evaluate)
        cell.folder.mkdir(parents=True, exist_ok=True)
        with cell.log.open("ab") as log:
            for _ in range(1 + self.retries):
                code = self._process(cell, "ppo", train, log) if cell.train else 0
                code = code or self._process(cell, "evaluate", evaluation, log)
                if code in (0, 2) or self.interrupted():  # 2: the user has to mend something first
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
        told = False
        while process.poll() is None:
            time.sleep(0.1)
            if self.killing.is_set():
                process.kill()
            elif not told and self.interrupted():
                process.terminate()
                told = True
        return process.returncode

    def progress(self) -> dict[str, float | None]:
        """Return how far each cell in work has come, by title, from 0 to 1; None before it says so."""
        return {
            cell.title: _progress(cell, module, start) for cell, module, start in list(self.running.values())
        }


def _progress(cell: Cell, module: str, start: int) -> float | None:
    """The share of a cell that is done, by the progress bars in its log from `start` on."""
    try:
        text = cell.log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return None
    done = dict(re.findall(r"(?:([a-z][a-z -]*): *)?(\d+)%\|", text))  # percent by bar, each one's last
    if module == "evaluate":
        done[""] = 100
    elif not done:
        return None
    episodes = cell.settings["episodes"] * EPISODE_STEPS
    steps: dict[str, int] = {"": cell.steps if cell.train else 0, "episodes": episodes}
    steps |= {f"shift {name}": episodes for name in cell.settings["shift"]}
    steps["faithfulness"] = cell.settings["faithfulness_frames"] * FRAME_STEPS
    return sum(steps[bar] * int(done.get(bar, 0)) / 100 for bar in steps) / sum(steps.values())


def bearable_jobs(of_gpu: int | None) -> int:
    """The number of cells to run at once: one a core, as long as there is memory for them.

    `of_gpu` are the bytes of the GPU that they share, or None without one.
    """
    memories = (machine.available_memory(), of_gpu)
    bounds = [int(memory // CELL_MEMORY) for memory in memories if memory is not None]
    return max(1, min([machine.cores(), *bounds]))


class Display:
    """The progress of an experiment: a bar with the time left, and a line for each cell that ended.

    The time left is reckoned from what this process has seen done: a cell that goes on from a checkpoint
    counts from there, and one that failed is no longer waited for.

    Args:
        total: all cells.
        done: those that were done before.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.first: dict[str, float] = {}
        """How far each running cell had come when that was first known, by title."""
        self.bar = tqdm(
            total=total,
            initial=done,
            smoothing=0,  # the time left by the mean speed since the beginning
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{percentage:3.0f}%|{bar}| {remaining} left, {desc}",
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.refresh()
        self.bar.close()

    def ended(self, outcome: Outcome) -> None:
        """Count and name a cell that ended."""
        first = self.first.pop(outcome.cell.title, 0)
        if outcome.status == "done":
            self.done += 1
        else:
            self.bar.initial -= first
        if outcome.status == "failed":
            self.bar.total -= 1
        self.bar.write(describe(outcome), file=sys.stderr)

    def show(self, running: Mapping[str, float | None]) -> None:
        """Show how far the running cells have come, by title, from 0 to 1; None before that is known."""
        known = {title: fraction for title, fraction in running.items() if fraction is not None}
        for title in known.keys() - self.first.keys():
            self.first[title] = known[title]
            self.bar.initial += known[title]
        self.bar.n = self.done + sum(known.values())
        states = [f"{self.done}/{self.total} runs"]
        states += [f"{title} {fraction or 0:.0%}" for title, fraction in running.items()]
        self.bar.set_description_str(", ".join(states), refresh=False)
        self.bar.update(0)


def run_here(missing: Sequence[Cell], total: int, jobs: int, runner: Runner) -> list[Outcome]:
    """Run cells on this machine, `jobs` at once; `total` counts those that were done before as well."""
    outcomes: list[Outcome] = []
    with Display(total, total - len(missing)) as display, ThreadPoolExecutor(jobs) as threads:
        waiting = [threads.submit(runner.run, cell) for cell in missing]
        try:
            while waiting:
                time.sleep(0.2)
                for ended in [future for future in waiting if future.done()]:
                    waiting.remove(ended)
                    outcomes.append(ended.result())
                    display.ended(outcomes[-1])
                display.show(runner.progress())
        except KeyboardInterrupt:
            runner.killing.set()
            raise
    return outcomes


def describe(outcome: Outcome) -> str:
    """One line on how a cell ended."""
    cell = outcome.cell
    minutes, seconds = divmod(round(outcome.seconds), 60)
    if outcome.status == "stopped":
        return f"stopped {cell.title}"
    if outcome.status == "failed":
        return f"failed  {cell.title} after {minutes}:{seconds:02}: {outcome.message} ({cell.log})"
    if not cell.train:
        other = Path(cell.evaluate[cell.evaluate.index("--compare") + 1])
        return f"shown   {cell.title} beside {'/'.join(other.parts[-3:])} in {minutes}:{seconds:02}"
    scores = json.loads((cell.folder / "scores.json").read_text(encoding="utf-8"))
    iou = "none" if scores["iou"] is None else f"{scores['iou']:.3f}"
    return f"done    {cell.title} in {minutes}:{seconds:02}: return {scores['return']['mean']:.2f}, IoU {iou}"
