"""Cells of an experiment -> runs on a Ray cluster: each trains on some node, and on another if that one dies.

The nodes need no shared folder for the runs. Files of a cell come back to the run folder on the machine where
the experiment was started with every checkpoint, and go from there to the node that takes the cell up again.
An environment of one's own is one of these files.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from camal_rl.errors import UserError, in_one_line
from camal_rl.game.definition import copied_toml, load_definition
from camal_rl.run.files import write_together
from camal_rl.run.runner import CELL_MEMORY, Cell, Display, Outcome, Runner

POLL = 1.0
"""Seconds between two looks at a cell's process."""


class Keeper:
    """Holds the run folders, by title, on the machine where the experiment was started; nodes call it."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.attempts = dict.fromkeys(folders, 0)
        self.fractions: dict[str, float | None] = {}
        """How far each cell has come, from 0 to 1; None before that is known."""
        self.stopping = False

    def begin(self, title: str) -> tuple[int, dict[str, bytes]]:
        """Count an attempt at a cell; return its number and the files there are to go on from."""
        self.attempts[title] += 1
        self.fractions[title] = None
        return self.attempts[title], files_of(self.folders[title])

    def report(self, title: str, attempt: int, fraction: float | None, files: dict[str, bytes]) -> bool:
        """Note how far an attempt is, write its new files, and return whether it has to stop.

        It has to if another attempt replaced it because its node was taken for dead; it writes nothing then.
        """
        if attempt != self.attempts[title]:
            return True
        self.fractions[title] = fraction
        write_together({self.folders[title] / name: content for name, content in files.items()})
        return self.stopping

    def progress(self, stopping: bool) -> dict[str, float | None]:
        """Return how far each cell that was begun has come; `stopping` lets every attempt save and end."""
        self.stopping = self.stopping or stopping
        return self.fractions


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of all files of a run folder, by their path in it, but for half-written ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def work(keeper: Any, cell: Cell, retries: int) -> Outcome:
    """Take up a cell where it stands, on this node, and send its files back with every checkpoint."""
    import ray

    attempt, files = ray.get(keeper.begin.remote(cell.title))
    stopping = threading.Event()
    runner = Runner(retries, stopping.is_set)
    with tempfile.TemporaryDirectory(prefix="camal_rl-") as runs_dir, ThreadPoolExecutor(1) as thread:
        here = cell._replace(folder=Path(runs_dir, *cell.folder.parts[-3:]))
        write_together({here.folder / name: content for name, content in files.items()})
        if toml := copied_toml(here.folder / "environment"):
            here = here._replace(train=(*here.train, "--env", str(toml)))
        sent = _checkpoint_time(here)
        running = thread.submit(runner.run, here)
        try:
            ended = False
            while not ended:
                ended = bool(wait([running], POLL).done)
                saved = _checkpoint_time(here)
                files = files_of(here.folder) if ended or saved != sent else {}
                sent = saved
                fraction = runner.progress().get(cell.title)
                if ray.get(keeper.report.remote(cell.title, attempt, fraction, files)):
                    stopping.set()
        finally:  # also where the keeper is gone, and with it the experiment
            stopping.set()
        return running.result()._replace(cell=cell)


def _checkpoint_time(cell: Cell) -> int:
    """When the checkpoint of a cell was written, in nanoseconds; 0 where there is none."""
    try:
        return (cell.folder / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def connected(address: str, needed: dict[str, float]) -> Iterator[Any]:
    """Connect to a Ray cluster; UserError where there is none, or no node of it has what a cell needs."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'camal-rl[ray]'.") from error
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # of many kinds
        raise UserError(
            f"no Ray cluster at {address}: {in_one_line(error)[:200]} "
            "Start one with `ray start --head`, or give its address."
        ) from error
    try:
        if not any(
            node["Alive"] and all(node["Resources"].get(kind, 0) >= least for kind, least in needed.items())
            for node in ray.nodes()
        ):
            raise UserError(
                f"no node of the Ray cluster has one CPU, {needed['GPU']:g} GPUs and "
                f"{needed['memory'] / 2**30:g} GiB of memory for a run."
            )
        yield ray
    finally:
        ray.shutdown()


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
        UserError: Ray is not installed, there is no such cluster, or no node of it has what a cell needs.
    """
    waiting = list(missing)
    running: dict[Any, Cell] = {}
    outcomes: list[Outcome] = []
    with (
        connected(address, {"CPU": 1, "GPU": gpus, "memory": CELL_MEMORY}) as ray,
        Display(total, total - len(missing)) as display,
    ):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        folders = {cell.title: cell.folder.resolve() for cell in missing}
        keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here).remote(folders)
        # A lost node is no fault of the cell: it is tried again as long as there are nodes.
        task = ray.remote(work).options(num_cpus=1, num_gpus=gpus, memory=CELL_MEMORY, max_retries=-1)
        for cell in missing:
            load_definition(cell.train[cell.train.index("--env") + 1]).copy_to(cell.folder / "environment")
        while waiting or running:
            if stopping := runner.interrupted():
                outcomes += [Outcome(cell, "stopped", 0, "") for cell in waiting]
                waiting.clear()
            while waiting and (not jobs or len(running) < jobs):
                cell = waiting.pop(0)
                running[task.remote(keeper, cell, runner.retries)] = cell
            ready = ray.wait(list(running), timeout=POLL)[0] if running else []
            for reference in ready:
                cell = running.pop(reference)
                try:
                    outcomes.append(ray.get(reference))
                except Exception as error:  # whatever went wrong on the node
                    outcomes.append(Outcome(cell, "failed", 0, in_one_line(error)[-300:]))
                display.ended(outcomes[-1])
            begun = ray.get(keeper.progress.remote(stopping))
            titles = [cell.title for cell in running.values()]
            display.show({title: begun[title] for title in titles if title in begun})
    return outcomes
