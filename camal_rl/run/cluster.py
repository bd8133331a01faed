"""Cells of an experiment on a Ray cluster: each trains on some node and goes on elsewhere if that node dies.

The nodes need no shared folder for the runs. Files of a cell come back to the run folder on the machine where
the experiment was started with every checkpoint, and go from there to the node that takes the cell up again.
A .toml file that names an environment is not sent: every node must find it at the same path.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from camal_rl.errors import UserError
from camal_rl.run.files import write_together
from camal_rl.run.runner import CELL_MEMORY, Cell, Display, Outcome, Runner

POLL = 1.0
"""Seconds between two looks at a cell's process."""
Status = Literal["done", "failed", "stopped"]


class Keeper:
    """Holds the run folders, on the machine where the experiment was started; the nodes' tasks call it."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        """By title."""
        self.attempts = dict.fromkeys(folders, 0)
        self.running: dict[str, float | None] = {}
        """How far each cell in work has come, by title, from 0 to 1; None before that is known."""
        self.stopping = False

    def begin(self, title: str) -> tuple[int, dict[str, bytes]]:
        """Count an attempt at a cell: its number, and the files there are to go on from."""
        self.attempts[title] += 1
        self.running[title] = None
        return self.attempts[title], files_of(self.folders[title])

    def report(self, title: str, attempt: int, fraction: float | None) -> bool:
        """Note how far an attempt is, and tell it whether to stop: all do, or another attempt replaced it."""
        if attempt != self.attempts[title]:
            return True
        self.running[title] = fraction
        return self.stopping

    def keep(self, title: str, attempt: int, files: dict[str, bytes]) -> None:
        """Write files of an attempt into the run folder, all of them or none."""
        if attempt != self.attempts[title]:  # a node that was taken for dead
            return
        folder = self.folders[title]
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_together({folder / name: content for name, content in files.items()})

    def end(self, title: str, attempt: int) -> None:
        """An attempt is over."""
        if attempt == self.attempts[title]:
            self.running.pop(title, None)

    def state(self) -> tuple[dict[str, float | None], dict[str, int]]:
        """How far the cells in work have come, and the attempts at each cell, by title."""
        return dict(self.running), dict(self.attempts)

    def stop(self) -> None:
        """Let every attempt save and end."""
        self.stopping = True


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of all files of a run folder, by their path in it, but for half-written ones."""
    if not folder.is_dir():
        return {}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def work(keeper: Any, cell: Cell, retries: int) -> tuple[Status, float, str]:
    """Take up a cell where it stands, on this node: how it ended, after how long, and why if it failed."""
    import ray

    attempt, files = ray.get(keeper.begin.remote(cell.title))
    with tempfile.TemporaryDirectory(prefix="camal_rl-") as runs_dir:
        here = cell._replace(folder=Path(runs_dir).joinpath(*cell.folder.parts[-3:]))
        for name, content in files.items():
            (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (here.folder / name).write_bytes(content)
        runner = Runner(retries)
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(runner.run(here)), name="cell")
        thread.start()
        sent = _checkpoint_time(here)
        try:
            while thread.is_alive():
                thread.join(POLL)
                if (saved := _checkpoint_time(here)) != sent:
                    ray.get(keeper.keep.remote(cell.title, attempt, files_of(here.folder)))
                    sent = saved
                if ray.get(keeper.report.remote(cell.title, attempt, runner.progress().get(cell.title))):
                    runner.stopping.set()
        finally:  # also where the keeper is gone, and with it the experiment
            runner.stopping.set()
            thread.join()
        ray.get(keeper.keep.remote(cell.title, attempt, files_of(here.folder)))
        ray.get(keeper.end.remote(cell.title, attempt))
        (outcome,) = outcomes
        return outcome.status, outcome.seconds, outcome.message


def _checkpoint_time(cell: Cell) -> int:
    try:
        return (cell.folder / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def run_on_ray(
    missing: Sequence[Cell], total: int, runner: Runner, address: str, gpus: float = 0, jobs: int = 0
) -> list[Outcome]:
    """Run cells on a Ray cluster, each with one CPU; `total` counts those that were done before as well.

    Args:
        runner: tells how often a cell is tried again, and when to stop.
        address: of the cluster, or `auto`.
        gpus: that a cell asks for, a fraction where several share one.
        jobs: cells at once, 0 for what the cluster has room for.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or no node has what a cell asks for.
    """
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'camal-rl[ray]'.") from error
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # of many kinds
        raise UserError(
            f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]} "
            "Start one with `ray start --head`, or give its address."
        ) from error
    needed = {"CPU": 1, "GPU": gpus, "memory": CELL_MEMORY}
    try:
        if not any(
            node["Alive"] and all(node["Resources"].get(kind, 0) >= least for kind, least in needed.items())
            for node in ray.nodes()
        ):
            raise UserError(
                f"no node of the Ray cluster has one CPU, {gpus:g} GPUs and {CELL_MEMORY / 2**30:g} GiB of "
                "memory for a run."
            )
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        folders = {cell.title: cell.folder.resolve() for cell in missing}
        keeper: Any = (
            ray.remote(Keeper)
            .options(num_cpus=0, scheduling_strategy=here, max_concurrency=1)
            .remote(folders)
        )
        # A lost node is no fault of the cell: it is tried again as long as there are nodes.
        task = ray.remote(work).options(num_cpus=1, num_gpus=gpus, memory=CELL_MEMORY, max_retries=-1)
        waiting = list(missing)
        running: dict[Any, Cell] = {}
        outcomes: list[Outcome] = []
        with Display(total, total - len(missing)) as display:
            while waiting or running:
                while waiting and not runner.stopping.is_set() and (not jobs or len(running) < jobs):
                    cell = waiting.pop(0)
                    running[task.remote(keeper, cell, runner.retries)] = cell
                if runner.stopping.is_set():
                    outcomes += [Outcome(cell, "stopped", 0, "") for cell in waiting]
                    waiting.clear()
                    keeper.stop.remote()
                ready, _ = ray.wait(list(running), timeout=POLL) if running else ([], [])
                for reference in ready:
                    cell = running.pop(reference)
                    try:
                        outcomes.append(Outcome(cell, *ray.get(reference)))
                    except Exception as error:  # whatever went wrong on the node
                        outcomes.append(Outcome(cell, "failed", 0, " ".join(str(error).split())[-300:]))
                    display.ended(outcomes[-1])
                display.show(ray.get(keeper.state.remote())[0])
                time.sleep(0.05)
        return outcomes
    finally:
        ray.shutdown()
