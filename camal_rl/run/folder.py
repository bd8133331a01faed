"""The folder of a run, `<runs-dir>/<env>/<name>/seed<k>/`: what defines the run and where it stands.

A folder belongs to one set of arguments: the same ones go on where the run stopped, others are refused.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shlex
import sys
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from camal_rl import __version__
from camal_rl.errors import UserError, in_one_line
from camal_rl.run.files import make_folder, write_whole
from camal_rl.run.runner import GAME, LEARNED
from camal_rl.run.tags import TAGS

CHECKPOINT_VERSION = 4
FREE_OPTIONS = (
    *("runs_dir", "data_dir", "checkpoint_every", "measure_every", "test_every"),
    *("device", "torch_threads", "play_in", "track"),
)
"""Options, of agents and of classifiers, that change where and how fast a run is done, or what is kept of it,
but not what is learned."""
PATIENCE = 10.0
"""Seconds to wait for another process, which may just be saving."""

# -------------------------------------------------------------------------------------- args.json: what it is


def describe(
    args: Any, chosen: Mapping[str, Any] | None = None, **groups: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what defines a run, as JSON gives it back: its options, and groups of what else does.

    Args:
        args: dataclass of options; those of `FREE_OPTIONS` are left out.
        chosen: options as they were chosen for this machine, in place of `args`' own.
        groups: mappings by name.
    """
    options = dataclasses.asdict(args) | dict(chosen or {})
    kept = {name: value for name, value in options.items() if name not in FREE_OPTIONS}
    described = {"args": kept, **groups}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(described, default=str))
    return plain


def read_args_file(folder: Path, needed: Sequence[str] = ("args", "definition")) -> dict[str, dict[str, Any]]:
    """Read args.json: a run's description, which has these groups.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = folder / "args.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no run (there is no args.json): give a folder such as runs/Basic/balanced/seed1."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {file}: {in_one_line(error)}.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in needed):
        raise UserError(
            f"{file} is not a run of this camal_rl, whose groups are {', '.join(needed)}: "
            "use the camal_rl that wrote it, or move the folder away to start anew."
        )
    return {name: group for name, group in content.items() if isinstance(group, dict)}


def check_args_file(folder: Path, described: Mapping[str, Mapping[str, Any]]) -> bool:
    """Refuse a folder that holds a run with other arguments; return whether it goes on for more agent steps.

    Raises:
        UserError: the message shows every difference.
    """
    if not (folder / "args.json").exists():
        return False
    before = read_args_file(folder, tuple(described))
    differences, longer = [], False
    for group, now in described.items():
        names = LEARNED if group == "definition" else sorted(before[group].keys() | now.keys())
        for name in names:
            was, is_now = before[group].get(name, "nothing"), now.get(name, "nothing")
            if name == "total_timesteps" and isinstance(was, int) and was < is_now:
                longer = True
            elif was != is_now:
                differences.append(f"{name} was {was}, now {is_now}")
    if differences:
        other = "--name" if "name" in described["args"] else "--runs-dir"
        raise UserError(
            f"{folder} holds a run with other arguments: {'; '.join(differences)}. "
            f"Choose another {other}, or move that folder away."
        )
    return longer


def check_definition(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse an environment that is not the one a run was trained on, whatever its file is called.

    Both are as `Definition.described` returns them.

    Raises:
        UserError: the message shows every difference.
    """
    differences = [
        f"{name} was {before.get(name)}, now {now[name]}" for name in GAME if before.get(name) != now[name]
    ]
    if differences:
        raise UserError(
            f"{folder} was trained on another environment: {'; '.join(differences)}. "
            "Give the TOML file it was trained on with --env."
        )
    if before.get("vizdoom") != now["vizdoom"]:
        print(
            f"camal_rl: {folder} was trained with ViZDoom {before.get('vizdoom')}, and this is "
            f"{now['vizdoom']}: its game may differ.",
            file=sys.stderr,
        )


def write_args_file(folder: Path, described: Mapping[str, Mapping[str, Any]], begun: bool = False) -> None:
    """Write args.json, making the folder where it is missing, and warn where a run goes on with other code.

    Args:
        described: as `describe` returns it; the hash of the package's code is added.
        begun: whether the run has begun, and so may have been trained by other code before.

    Raises:
        UserError: the folder can't be made or written.
    """
    make_folder(folder, "--runs-dir")
    code = _trained_by(folder) if begun else []
    if code and code[-1] != code_hash():
        print(
            f"camal_rl: the package's code has changed since {folder} was last trained; args.json says so.",
            file=sys.stderr,
        )
    if code[-1:] != [code_hash()]:
        code.append(code_hash())
    content = {"version": __version__, **described, "code": {"code": code}}
    write_whole(folder / "args.json", (json.dumps(content, indent=2) + "\n").encode())


@cache
def code_hash() -> str:
    """The start of the SHA-256 of the package's Python files, changes that are in no commit included."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def by_other_code(folder: Path) -> bool:
    """Return whether any other code than this has trained a run, as far as its args.json says."""
    return any(code != code_hash() for code in _trained_by(folder))


def _trained_by(folder: Path) -> list[str]:
    """The `code_hash` of all code that has trained a run, in that order."""
    if not (folder / "args.json").exists():
        return []
    return list(read_args_file(folder, ("code",))["code"]["code"])


# ------------------------------------------------------------------------------------------- lock, checkpoint


@contextmanager
def lock(folder: Path, purpose: str) -> Iterator[None]:
    """Keep other processes from doing the same in a run folder, which is made where it is missing.

    The operating system lets go of the lock when a process ends, however it ends.

    Args:
        purpose: what is done, such as `train`; it names the lock and stands in the message.

    Raises:
        UserError: another process does it, or the folder can't be written.
    """
    make_folder(folder, "folder")
    try:
        held = filelock.FileLock(folder / f".{purpose}.lock").acquire(timeout=PATIENCE)
    except filelock.Timeout as error:
        raise UserError(
            f"another process does the same ({purpose}) in {folder}: wait for it, or end it."
        ) from error
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}. Choose another folder.") from error
    with held:
        yield


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write all that a run needs to go on, tensors and plain values, as torch does: a ZIP archive.

    Raises:
        UserError: the disk is full or the folder can't be written; the checkpoint before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"version": CHECKPOINT_VERSION, **state}, buffer)
    write_whole(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote, None where there is none; nothing in the file can run code.

    Raises:
        UserError: not a checkpoint, a damaged one, or one of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not look at the members' checksums
                raise zipfile.BadZipFile(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = checkpoint["version"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UserError(f"can't read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged file makes zipfile and torch raise all kinds
        raise UserError(
            f"{path} is damaged or no checkpoint: move it away to start anew, or bring back a copy of it."
        ) from error
    if version != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has version {version}, and this camal_rl reads version {CHECKPOINT_VERSION}: "
            "use the camal_rl that wrote it, or move it away to start anew."
        )
    return checkpoint


WEIGHTS = "model.safetensors"
"""The weights of a run that was shared, see `camal_rl.hub`."""


def weights_file(folder: Path) -> Path:
    """The file with a run's weights: its checkpoint, or what is shared of it."""
    shared, own = folder / WEIGHTS, folder / "checkpoint.pt"
    return shared if shared.is_file() and not own.is_file() else own


def load_weights(file: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Read an agent's weights from a `weights_file`, and the iterations that it was trained for.

    Raises:
        UserError: there is none, it is damaged, or it is shared and safetensors is not installed.
    """
    if file.name == WEIGHTS:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise UserError(f"{file} needs safetensors: pip install safetensors.") from error
        try:
            with safe_open(file, "pt") as content:
                weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
                return weights, int(content.metadata()["iteration"])
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: get it again.") from error
    checkpoint = load_checkpoint(file)
    if checkpoint is None:
        raise UserError(f"{file.parent} has no checkpoint.pt: train first, python -m camal_rl.ppo.")
    return checkpoint["agent"], int(checkpoint["iteration"])


def remove_remains(folder: Path, names: Sequence[str]) -> None:
    """Remove what is left of these files where their writer was killed in the middle; only under its lock."""
    for name in names:
        path = folder / name
        for temporary in path.parent.glob(f".{path.name}.*"):
            temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ the trainer's run


class RunFolder:
    """An agent's run while it trains: its checkpoint, logs and progress bar. A context manager.

    Nothing is written before `resume`, when all that can be refused has been.

    Args:
        args: `ppo.Args`, checked.
        definition: the environment's `Definition`.
        chosen: options as they were chosen for this machine, in place of `args`' own.

    Attributes:
        path: the folder.
        described: what defines the run, the content of args.json.
        total: iterations of the whole run.
        iteration: iterations that are done, or being done.
        status: what is shown beside the progress bar, by name.

    Raises:
        UserError: the folder is another run's, is in use or can't be written, or its checkpoint is damaged.
    """

    def __init__(self, args: Any, definition: Any, chosen: Mapping[str, Any]) -> None:
        self.args = args
        self.definition = definition
        name = args.name or args.method
        self.path: Path = args.runs_dir / definition.name / name / f"seed{args.seed}"
        chosen = {"env": definition.name, "name": name, **chosen}
        self.described = describe(args, chosen, definition=definition.described())
        self._cleanup = ExitStack()
        self._recent: deque[float] = deque(maxlen=100)  # raw returns of episodes
        self.total: int = args.total_timesteps // args.batch_size
        self.iteration = 0
        self.status: dict[str, str] = {}

    def __enter__(self) -> RunFolder:
        if self.args.track:
            try:
                import wandb  # noqa: F401
            except ImportError as error:
                raise UserError("--track needs Weights & Biases: pip install wandb.") from error
        check_args_file(self.path, self.described)
        self._load()
        return self

    def _load(self) -> dict[str, Any] | None:
        """Return the checkpoint, if there is one, and note how far it is."""
        checkpoint = load_checkpoint(self.path / "checkpoint.pt")
        if checkpoint is not None:
            if not (self.path / "args.json").exists():
                raise UserError(f"{self.path} has a checkpoint but no args.json: move it away to start anew.")
            self.iteration = checkpoint["iteration"]
        return checkpoint

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._cleanup.close()
        if isinstance(error, FloatingPointError):
            raise UserError(
                f"iteration {self.iteration:,}: {error} is NaN or infinite, and training has stopped. The "
                "last checkpoint is as it was. Try a lower --learning-rate or --max-grad-norm, or "
                "--precision fp32."
            ) from error

    def is_done(self) -> bool:
        """Return whether nothing is left to do, and say so then."""
        if self.iteration < self.total:
            return False
        print(f"{self.path} is already done: {self.step:,} steps. More takes a larger --total-timesteps.")
        if by_other_code(self.path):
            print("It was trained by other code of the package than this. To train it anew, give a --name.")
        self._say_what_comes_next()
        return True

    def _say_what_comes_next(self) -> None:
        print(f"Evaluate it: python -m camal_rl.evaluate {shlex.quote(str(self.path))}")

    @property
    def step(self) -> int:
        """Agent steps that are done, over all games."""
        return self.iteration * int(self.args.batch_size)

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Lock the folder, open the logs, bring `state` back to the checkpoint; return whether there was one.

        Args:
            state: by name what `save` saves.
        """
        self._cleanup.enter_context(lock(self.path, "train"))
        checkpoint = self._load()  # another process may have trained since
        options = self.described["definition"] | self.described["args"]
        print(
            f"camal_rl {__version__}: {options['env']}, {options['name']}, seed {self.args.seed}, "
            f"{self.total:,} iterations of {self.args.batch_size:,} steps "
            f"on {options['device_type']} ({options['precision']})\n"
            f"Run folder:  {self.path}\nTensorBoard: tensorboard --logdir {self.args.runs_dir}\n"
            f"Expect:      random play has a mean return of {options['random_return']:g}, the reference is "
            f"{options['reference_return']:g}",
            flush=True,
        )
        self._note_more_steps()
        write_args_file(self.path, self.described, begun=checkpoint is not None)
        self.definition.copy_to(self.path / "environment")
        remove_remains(self.path, ("checkpoint.pt", "args.json", "curves.csv", "media/attention.png"))
        # What a killed process logged after its last checkpoint, or without one, is done and logged again.
        if self.args.track:
            self._track()
        self._writer: Any = SummaryWriter(str(self.path), purge_step=self.step + 1)
        self._cleanup.callback(self._writer.close)
        self._untold = dict(TAGS)
        self._curves = self._cleanup.enter_context(_open_curves(self.path / "curves.csv", self.step))
        if checkpoint is None:
            rows = "\n".join(f"|{name}|{value}|" for name, value in options.items())
            self._writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
            return False
        for name, part in state.items():
            load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            load(checkpoint[name])
        self._recent.extend(checkpoint["recent"])
        print(f"Going on from step {self.step:,}.", flush=True)
        return True

    def _track(self) -> None:
        """Mirror TensorBoard to Weights & Biases, as CleanRL does; a run that goes on is one run there."""
        import wandb

        note = self.path / "wandb.txt"
        try:
            mirrored = wandb.init(
                project=self.args.track,
                id=note.read_text() if note.exists() else None,
                resume="allow",
                name="/".join(self.path.parts[-3:]),
                config=self.described["definition"] | self.described["args"],
                dir=self.args.runs_dir,  # not the run's folder, in which all event files are mirrored
                sync_tensorboard=True,
            )
        except Exception as error:  # of a network, a key
            reason = in_one_line(error)[:200]
            raise UserError(f"--track: {reason} Run wandb login, or set WANDB_MODE=offline.") from error
        note.write_text(mirrored.id)
        self._cleanup.callback(mirrored.finish)

    def _note_more_steps(self) -> None:
        """Note in args.json, and say, that a run which has begun goes on for longer than it was planned."""
        if not self.iteration or not self.args.anneal_lr:
            return
        before = read_args_file(self.path)
        if "trained_on" in before:
            self.described["trained_on"] = before["trained_on"]
        planned = before["args"]["total_timesteps"] // self.args.batch_size
        if planned < self.total:
            self.described["trained_on"] = {"trained_on_from": self.step}
            old, new = (
                f"{self.args.learning_rate * (1 - self.iteration / total):.3g}"
                for total in (planned, self.total)
            )
            print(
                f"More steps than planned: the learning rate rises from {old} to {new}, so this is not what "
                "as many steps from the start would give. args.json says so."
            )

    def iterations(self) -> Iterator[int]:
        """Yield the numbers, from 1 on, of the iterations to do, and show how far they are."""
        self._first_step, self._began = self.step, time.perf_counter()
        bar = tqdm(
            total=self.total * self.args.batch_size,
            initial=self.step,
            unit="step",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}",
        )
        known = min(self.iteration + 3, self.total)
        with bar:
            while self.iteration < self.total:
                self.iteration += 1
                yield self.iteration
                if self.iteration == known:
                    self._say_how_long()
                bar.set_postfix({"SPS": f"{self.speed():.0f}", **self.status}, refresh=False)
                bar.update(self.args.batch_size)
            bar.refresh()
        if self._recent:
            mean = np.mean(self._recent)
            print(f"Done. Mean return of the last {len(self._recent)} episodes: {mean:.2f}")
        self._say_what_comes_next()

    def _say_how_long(self) -> None:
        left = (self.total - self.iteration) * self.args.batch_size
        minutes = left / self.speed() / 60
        if minutes > 1:
            duration = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
            tqdm.write(
                f"The other {left:,} steps take about {duration} at {self.speed():.0f} a second. "
                "Ctrl-C saves; the same command goes on."
            )

    def speed(self) -> float:
        """Return agent steps a second since this process began to train."""
        return (self.step - self._first_step) / (time.perf_counter() - self._began)

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars by TensorBoard tag, at this iteration's end unless another agent step is given."""
        for tag, value in scalars.items():
            at = self.step if step is None else step
            # As add_scalar, with what the tag means, which TensorBoard takes from its first value.
            point = Summary.Value(tag=tag, simple_value=value)
            if tag in self._untold:
                point.metadata.summary_description = self._untold.pop(tag)
                point.metadata.plugin_data.plugin_name = "scalars"
            self._writer.file_writer.add_summary(Summary(value=[point]), at)
            self._curves.write(f"{tag},{at},{value:.9g}\n")

    def log_image(self, tag: str, image: np.ndarray) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        self._writer.add_image(tag, image, self.step, dataformats="HWC")

    def log_episodes(self, episodes: Sequence[tuple[int, float, int]]) -> None:
        """Log return and length of finished episodes, see `doom.Episode`, at the steps where they ended."""
        for end, total, length in episodes:
            scalars = {"charts/episodic_return": total, "charts/episodic_length": length}
            self.log(scalars, end * self.args.num_envs)
            self._recent.append(total)
        if self._recent:
            self.status["return"] = f"{np.mean(self._recent):.1f}"

    def passed(self, every: int) -> bool:
        """Return whether this iteration was the last or passed a multiple of `every` agent steps."""
        before = self.step - self.args.batch_size
        return self.iteration == self.total or self.step // every > before // every

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint: what `state` holds by name, after what was logged so far."""
        self._writer.flush()
        self._curves.flush()
        parts = {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in state.items()
        }
        more = {"iteration": self.iteration, "recent": list(self._recent)}
        save_checkpoint(self.path / "checkpoint.pt", parts | more)


def _open_curves(path: Path, step: int) -> IO[str]:
    """Open the table of scalars to go on with, without what was logged after `step`."""
    kept = [["tag", "step", "value"]]
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept += [row for row in list(csv.reader(file))[1:] if len(row) == 3 and int(row[1]) <= step]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    write_whole(path, text.getvalue().encode())
    return path.open("a", encoding="utf-8")
