"""A scenario -> ViZDoom's process: it outlives Ctrl-C, is killed if it hangs, and ends with its trainer."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import mmap
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import vizdoom

from camal_rl.errors import UserError, in_one_line

ENGINE_ERRORS = (
    vizdoom.ViZDoomErrorException,
    vizdoom.ViZDoomIsNotRunningException,
    vizdoom.ViZDoomUnexpectedExitException,
    vizdoom.MessageQueueException,
    vizdoom.SharedMemoryException,
)
"""The errors of a call into a game whose process is no longer there or no longer sound."""


@contextmanager
def engine_errors_told() -> Iterator[None]:
    """Turn `ENGINE_ERRORS` into a UserError."""
    try:
        yield
    except ENGINE_ERRORS as error:
        raise UserError(
            f"a ViZDoom engine ended unexpectedly ({in_one_line(error)}). Run the command again."
        ) from error


# The launcher notes its process id, which the engine takes over, and ViZDoom's name for that engine.
_LAUNCHER = """#!/bin/sh
cd {folder} || exit 1
for word; do
    [ "$before" = +viz_instance_id ] && echo $$ "$word" > "$0.note"
    before=$word
done
exec {engine} "$@"
"""
# A process id may long be another process's: only one whose command line holds the engine's name is killed.
_CARETAKER = """
read -r end_of_file
for note in {folder}/engines/*.note; do
    read -r process name < "$note" && [ "$name" ] || continue
    grep -qsF -- "$name" "/proc/$process/cmdline" && kill -9 "$process"
    rm -f "/dev/shm/ViZDoomSM$name" "/dev/shm/ViZDoomMQCtr$name" "/dev/shm/ViZDoomMQDoom$name"
done
rm -rf {folder}
"""


@cache
def engine_folder(process: int) -> Path:
    """A folder of this process's own, in which its engines run: `launcher`, and `engines/` with their notes.

    An engine makes a folder in its working directory, and crashes the calling process where it can't: started
    here it neither litters the user's folder nor needs to write there. Nor does an engine end with a process
    that is killed. So a caretaker, a shell, waits for this process's end, however it comes, and then removes
    what is left of engines, shared memory and the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="camal_rl-"))
    (folder / "engines").mkdir()
    program = shlex.quote(str(Path(vizdoom.__file__).with_name("vizdoom")))
    launcher = folder / "launcher"
    launcher.write_text(_LAUNCHER.format(folder=shlex.quote(str(folder)), engine=program))
    launcher.chmod(0o700)
    caretaker = subprocess.Popen(
        ["/bin/sh", "-c", _CARETAKER.format(folder=shlex.quote(str(folder)))],
        stdin=subprocess.PIPE,  # ends when no process is left that holds the other end
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )

    def end() -> None:
        if os.getpid() == process:  # and not a fork of it, which must leave everything to its parent
            caretaker.communicate(b"\n")  # a line, for a fork may hold the pipe open

    atexit.register(end)
    threading.Thread(target=_watch, name="watchdog", daemon=True).start()
    return folder


PATIENCE = 1.0
"""Seconds that a call may take before anybody looks whether its engine is still there."""
TIME_LIMIT = 30.0
"""Seconds after which a call into an engine counts as hung."""
START_LIMIT = 60.0
"""Seconds after which the start of an engine counts as hung."""

_starting = threading.Lock()  # ViZDoom 1.3.2 now and then crashes where two threads start engines at once
_numbers = itertools.count()
_engines: set[Engine] = set()  # those that the watchdog looks after


def _watch() -> None:
    while True:
        time.sleep(PATIENCE / 4)
        for engine in list(_engines):
            engine.end_if_late()


def _watched(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of DoomGame one of `Engine`, whose watchdog knows when it was called."""

    @wraps(call)
    def watched(engine: Engine, *args: Any, **options: Any) -> Any:
        engine.busy_since = time.monotonic()
        try:
            return call(engine, *args, **options)
        finally:
            engine.busy_since = None

    return watched


class Engine(vizdoom.DoomGame):
    """A game whose calls end one way or the other: where its process hangs, it is killed, and the call fails.

    Args:
        time_limit: seconds that a call may take.
    """

    new_episode = _watched(vizdoom.DoomGame.new_episode)
    make_action = _watched(vizdoom.DoomGame.make_action)
    advance_action = _watched(vizdoom.DoomGame.advance_action)
    _init = _watched(vizdoom.DoomGame.init)

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        super().__init__()
        self.busy_since: float | None = None
        self._time_limit = time_limit
        # DoomGame 1.3.2 crashes, and this process with it, where the one that it is starting ends without a
        # word (a null pointer in DoomController::close): so only what surely hangs is killed then.
        self._limit = max(START_LIMIT, time_limit)
        self._launcher = engine_folder(os.getpid()) / "engines" / str(next(_numbers))
        self._note = self._launcher.with_suffix(".note")

    def init(self) -> None:
        """Start the process."""
        with suppress(OSError):  # somebody has removed the folder
            self._launcher.symlink_to("../launcher")
        if os.access(self._launcher, os.X_OK):  # a temporary folder mounted noexec can't hold it
            self.set_vizdoom_path(str(self._launcher))
        _engines.add(self)
        with _starting:
            # A terminal sends Ctrl-C to the whole process group. An engine, which inherits the signal mask of
            # the thread that starts it, lives on, so that the trainer can end its iteration and save.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                self._init()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._limit = self._time_limit

    def close(self) -> None:
        """End the process, whatever state it is in."""
        process = self.process
        self.kill()  # nothing in it is worth saving, and DoomGame would wait for one that hangs
        deadline = time.monotonic() + PATIENCE
        while process is not None and Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        self._unlock()
        super().close()
        _engines.discard(self)
        for file in (self._note, self._launcher):
            file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the process from outside: a call that waits for it fails."""
        if (process := self.process) is not None:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)

    @property
    def process(self) -> int | None:
        """The process's id, None where it has ended or can't be known."""
        process, name = self._read_note()
        with suppress(OSError):
            # Once it has ended, its id may be another's.
            if name and name.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                return process
        return None

    def _read_note(self) -> tuple[int, str]:
        """The process's id and ViZDoom's name for it, with which its shared memory's names end."""
        try:
            process, name = self._note.read_text().split()
            return int(process), name
        except (OSError, ValueError):
            return 0, ""

    def end_if_late(self) -> None:
        """Let a call fail that takes too long, or waits for a process that has ended."""
        since = self.busy_since
        if since is None or (seconds := time.monotonic() - since) < PATIENCE:
            return
        if self.process is None:
            self._unlock()
        elif seconds > self._limit:
            self.kill()

    def _unlock(self) -> None:
        for queue in ("Ctr", "Doom"):
            with suppress(OSError, ValueError):
                unlock(Path(f"/dev/shm/ViZDoomMQ{queue}{self._read_note()[1]}"))


PROCESS_SHARED = 128
"""The kind of a mutex of glibc that processes share."""


def unlock(shared_memory: Path) -> int:
    """Unlock the mutexes in there whose owners have ended, and return how many they were.

    A process that is killed while it holds a message queue's mutex leaves it locked, and DoomGame would wait
    for it forever, in a place from which no signal brings it back. What it was about to do under the lock is
    to send or take a message, after all else was done, so nothing is half done.

    Raises:
        OSError, ValueError: it is not there, or empty.
    """
    if platform.libc_ver()[0] != "glibc":  # others lay out their mutexes differently
        return 0
    unlocked = 0
    with shared_memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        words = (ctypes.c_int * (min(len(memory), 4096) // 4)).from_buffer(memory)
        for place in range(len(words) - 9):  # a mutex has ten: lock, count, owner, users, kind and others
            locked, _, owner, users, kind = words[place : place + 5]
            shared = locked in (1, 2) and users > 0 and kind == PROCESS_SHARED
            if shared and owner > 0 and not Path(f"/proc/{owner}").exists():
                ctypes.CDLL(None).pthread_mutex_unlock(ctypes.byref(words, 4 * place))
                unlocked += 1
        del words  # it keeps the memory mapped
    return unlocked


def load_config(game: vizdoom.DoomGame, config: Path) -> bool:
    """Read a .cfg into a game; False where it has lines that ViZDoom does not understand."""
    understood = bool(game.load_config(str(config)))
    for path, set_path in (
        (game.get_doom_scenario_path(), game.set_doom_scenario_path),
        (game.get_doom_game_path(), game.set_doom_game_path),
    ):
        # ViZDoom puts the .cfg's folder before absolute paths as well, and has games in a folder of its own.
        others = (path.removeprefix(str(config.parent)), Path(vizdoom.__file__).parent / Path(path).name)
        set_path(next((str(file) for file in (path, *others) if Path(file).is_file()), path))
    return understood


_TRIAL = """
import signal, sys
from pathlib import Path
from camal_rl.game import engine
config = Path(sys.argv[1])
engine._tried.add(config)
signal.alarm(int(sys.argv[2]))
game = engine.start_engine(config, 120, 160, lambda game: game.set_console_enabled(True))
game.new_episode()
game.close()
"""
TRIAL_LIMIT = 10
"""Seconds after which the first start of an unknown scenario counts as hung."""
_tried: set[Path] = set()  # scenarios with which an engine has started


def _try_scenario(config: Path) -> None:
    """Start an engine in another process: one that ends or hangs in its start takes its caller along."""
    trial = subprocess.run(
        [sys.executable, "-c", _TRIAL, config, str(TRIAL_LIMIT)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )
    if trial.returncode < 0:  # else it started, or fails here as well, and says why
        hung = f"hangs (for {TRIAL_LIMIT} s)" if trial.returncode == -signal.SIGALRM else "crashes"
        words = (trial.stdout.strip().splitlines() or ["nothing"])[-1].strip()
        raise UserError(
            f"the ViZDoom engine {hung} when it starts with {config}. The last it said: {words[:100]}. "
            "Check that file's doom_map and game_args."
        )
    _tried.add(config)


def start_engine(
    config: Path,
    height: int,
    width: int,
    prepare: Callable[[vizdoom.DoomGame], None] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Engine:
    """Start a game: grey frames and labels of this size in pixels, no window, no sound, one tic at a time.

    Args:
        prepare: called with the game before it starts, for settings that have to differ.
        time_limit: seconds that a call into the game may take.

    Raises:
        UserError: it can't be started with this .cfg, or on this machine.
    """
    if config not in _tried and config.parent != Path(vizdoom.scenarios_path).resolve():
        _try_scenario(config)
    game = Engine(time_limit)
    load_config(game, config)
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_format(vizdoom.ScreenFormat.GRAY8)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
    game.set_labels_buffer_enabled(True)
    game.set_depth_buffer_enabled(False)
    game.set_automap_buffer_enabled(False)
    game.set_audio_buffer_enabled(False)
    # The bobbing of the weapon in the hand is the one thing in a frame that depends on how many were drawn
    # before, and not on the game alone; without it a replay that draws only the last frames shows the same.
    game.add_game_args("+movebob 0")
    game.set_doom_config_path(os.devnull)  # else all engines read, and in the end write, one settings file
    if prepare is not None:
        prepare(game)
    check_shared_memory(1)
    try:
        game.init()
    except Exception as error:
        game.close()
        raise UserError(
            f"the ViZDoom engine did not start with {config}: {in_one_line(error)} "
            f"Check the paths in that file, free memory (`free -m`) and "
            "shared memory (`df /dev/shm`), or use fewer environments."
        ) from error
    return game


ENGINE_MEMORY = 2**20
"""Bytes of shared memory for an engine. It maps 10 MiB and, rendering 320x240, fills 0.2 (measured)."""


def check_shared_memory(engines: int, more: int = 0) -> None:
    """Refuse to start engines that shared memory can't hold: where it runs out they die of SIGBUS.

    Args:
        engines: how many.
        more: bytes that are needed besides.

    Raises:
        UserError: not enough is free.
    """
    try:
        stats = os.statvfs("/dev/shm")
    except OSError:  # no such thing on this system
        return
    if (free := stats.f_bavail * stats.f_frsize) < (needed := engines * ENGINE_MEMORY + more):
        instead = "--play-in threads" if more else "fewer environments"
        raise UserError(
            f"shared memory is full: /dev/shm has {free / 2**20:.1f} MiB free, and {engines} game engine"
            f"{'s need' if engines > 1 else ' needs'} {needed / 2**20:.0f} MiB. Free some, use {instead}, or "
            "give a container more (docker run --shm-size=1g)."
        )
