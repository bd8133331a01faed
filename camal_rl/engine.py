"""The ViZDoom engine's process: started so that it outlives Ctrl-C, and ended however its trainer ends."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import vizdoom

from camal_rl import UserError

ENGINE_ERRORS = (
    vizdoom.ViZDoomErrorException,
    vizdoom.ViZDoomIsNotRunningException,
    vizdoom.ViZDoomUnexpectedExitException,
    vizdoom.MessageQueueException,
    vizdoom.SharedMemoryException,
)
"""What a call into a game raises when its process is no longer there or no longer sound."""

_LAUNCHER = """#!/bin/sh
cd {folder} || exit 1
for word; do
    [ "$before" = +viz_instance_id ] && echo $$ > "engines/$word"
    before=$word
done
exec {engine} "$@"
"""
# A process id may long be another process's: only one whose command line holds the engine's id is killed.
_CARETAKER = """
read -r end_of_file
cd {folder}/engines && for id in *; do
    [ -f "$id" ] || continue
    read -r process < "$id"
    grep -qsF -- "$id" "/proc/$process/cmdline" && kill -9 "$process"
    rm -f "/dev/shm/ViZDoomSM$id" "/dev/shm/ViZDoomMQCtr$id" "/dev/shm/ViZDoomMQDoom$id"
done
rm -rf {folder}
"""


@lru_cache
def engine_folder(process: int) -> Path:
    """A folder of this process's own, with the launcher that starts engines in it.

    An engine makes a folder in its working directory, and crashes the calling process where it can't: started
    here it neither litters the user's folder nor needs to write there. Nor does an engine end with a process
    that is killed. So a caretaker, a shell, waits for this process's end, however it comes, and then removes
    what is left of engines, shared memory and the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="camal_rl-"))
    (folder / "engines").mkdir()  # a file for each, named as its shared memory, with its process id
    names = {
        "folder": shlex.quote(str(folder)),
        "engine": shlex.quote(str(Path(vizdoom.__file__).with_name("vizdoom"))),
    }
    launcher = folder / "engine"
    launcher.write_text(_LAUNCHER.format(**names))
    launcher.chmod(0o700)
    caretaker = subprocess.Popen(
        ["/bin/sh", "-c", _CARETAKER.format(**names)],
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
    return folder


_starting = threading.Lock()  # ViZDoom 1.3.2 now and then crashes where two threads start engines at once


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Engines inherit the signal mask of the thread that starts them.

    A terminal sends Ctrl-C to the whole process group: with the signals blocked an engine lives on, so that
    the trainer can end its iteration and save.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_engine(
    config: Path, height: int, width: int, prepare: Callable[[vizdoom.DoomGame], None] | None = None
) -> vizdoom.DoomGame:
    """Start a game: grey frames and labels of this size in pixels, no window, no sound, one tic at a time.

    `prepare` is called with the game before it starts, for settings that have to differ.

    Raises:
        UserError: it can't be started with this .cfg, or on this machine.
    """
    game = vizdoom.DoomGame()
    game.load_config(str(config))
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
        with _starting, _signals_blocked():
            launcher = engine_folder(os.getpid()) / "engine"
            if os.access(launcher, os.X_OK):  # a temporary folder mounted noexec can't hold it
                game.set_vizdoom_path(str(launcher))
            game.init()
    except Exception as error:
        game.close()
        raise UserError(
            f"the ViZDoom engine did not start with {config}: {' '.join(str(error).split())} "
            f"Check the paths in that file, free memory (`free -m`) and "
            "shared memory (`df /dev/shm`), or use fewer environments."
        ) from error
    return game


def check_shared_memory(engines: int) -> None:
    """Refuse to start engines that shared memory can't hold: where it runs out they die of SIGBUS.

    An engine maps 10 MiB and, rendering 320x240, fills 0.2 MiB of them (measured): 1 MiB leaves a margin.

    Raises:
        UserError: not enough is free.
    """
    try:
        stats = os.statvfs("/dev/shm")
    except (AttributeError, OSError):  # no such thing on this system
        return
    if (free := stats.f_bavail * stats.f_frsize) < engines * 2**20:
        raise UserError(
            f"shared memory is full: /dev/shm has {free / 2**20:.1f} MiB free, and {engines} game engine"
            f"{'s need' if engines > 1 else ' needs'} {engines} MiB. Free some, use fewer environments, "
            "or give a container more (docker run --shm-size=1g)."
        )
