"""The engine's process: what it survives, what it needs, and that nothing is left of it."""

import ctypes
import dataclasses
import mmap
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import vizdoom
from conftest import ROOT, SMALL, left_of, own_engines, processes_of, run, wait_until

from camal_rl import doom
from camal_rl.errors import UserError
from camal_rl.game import engine
from camal_rl.game.definition import load_definition


@pytest.mark.engine
def test_signals_of_the_terminal_do_not_end_an_engine(start: Callable[..., doom.DoomEnv]) -> None:
    env = start("Basic")
    env.reset(seed=1)
    engines = [process for name in own_engines() for process in processes_of(name)]
    assert len(engines) == 1
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engines[0], number)
    for _ in range(5):
        env.step(0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "the caller's own are as they were"
    assert len(env.state_dict()["episode_actions"]) == 5


@pytest.mark.engine
def test_engines_can_be_started_from_several_threads(start: Callable[..., doom.DoomEnv]) -> None:
    observations: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: observations.append(start("Basic").reset(seed=1)[0]["image"]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(observations) == 3
    assert (observations[0] == observations[1]).all()


@pytest.mark.engine
def test_an_engine_needs_no_writable_working_folder_and_leaves_nothing_there(tmp_path: Path) -> None:
    program = (
        "from camal_rl import doom\n"
        "env = doom.DoomEnv('Basic', render_resolution='160x120')\n"
        "print(env.reset(seed=1)[0]['image'].mean())\n"
    )
    results = [run("-c", program, folder=folder) for folder in (Path("/proc"), tmp_path)]
    assert [result.returncode for result in results] == [0, 0]
    assert results[0].stdout == results[1].stdout != ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_a_fork_leaves_its_parents_engines_and_folder_alone(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from camal_rl import doom\n"
        "from camal_rl.game import engine\n"
        "folder = engine.engine_folder(os.getpid())\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "env = doom.DoomEnv('Basic', render_resolution='160x120')\n"
        "env.reset(seed=1)\n"
        "print(folder, env.game._read_note()[1])\n"
    )
    result = run("-W", "ignore", "-c", program, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    folder, *engines = result.stdout.split()
    assert len(engines) == 1
    assert wait_until(lambda: not Path(folder).exists())
    assert left_of(engines) == []


@pytest.mark.engine
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "from camal_rl import doom\n"
        "from camal_rl.game import engine\n"
        "envs = doom.DoomVectorEnv('Basic', 2, render_resolution='160x120')\n"
        "envs.reset(seed=1)\n"
        "folder = engine.engine_folder(os.getpid())\n"
        "print(folder, *(env.game._read_note()[1] for env in envs.envs), flush=True)\n"
        "time.sleep(60)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    folder, *engines = killed.stdout.readline().split()
    assert len(left_of(engines)) == 2 * 4  # three segments and a process each
    killed.kill()
    killed.communicate()
    assert wait_until(lambda: not left_of(engines) and not Path(folder).exists())


@pytest.mark.engine
def test_an_engine_that_did_not_start_ends_no_other_that_started_meanwhile(
    start: Callable[..., doom.DoomEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(game: vizdoom.DoomGame) -> None:
        raise vizdoom.ViZDoomErrorException("no memory")

    failed = engine.Engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_init", fail)
        with pytest.raises(vizdoom.ViZDoomErrorException):
            failed.init()
    env = start("Basic")
    env.reset(seed=1)
    failed.close()
    assert failed.process is None
    env.step(0)
    assert env.restarts == 0


@pytest.mark.engine
def test_a_first_start_that_would_crash_or_hang_is_refused_with_the_engines_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Path(vizdoom.scenarios_path) / "cig.cfg"
    for file in (scenario, scenario.with_suffix(".wad")):
        shutil.copy(file, tmp_path)
    message = (
        r"engine crashes when it starts with /.*cig\.cfg\. The last it said: map01 - Hydroelectric Plant\."
    )
    with pytest.raises(UserError, match=message):
        engine.start_engine(tmp_path / "cig.cfg", 120, 160)
    (tmp_path / "cig.cfg").write_text("available_buttons = { ATTACK }\ngame_args = -host 2\n")
    monkeypatch.setattr(engine, "TRIAL_LIMIT", 1)
    with pytest.raises(UserError, match=r"engine hangs \(for 1 s\) when it starts with /.*cig\.cfg\."):
        engine.start_engine(tmp_path / "cig.cfg", 120, 160)


@pytest.mark.engine
def test_a_scenario_of_ones_own_is_tried_once_and_its_absolute_paths_are_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = Path(vizdoom.scenarios_path).resolve() / "basic.cfg"
    own = tmp_path / "own.cfg"
    own.write_text(stock.read_text().replace("basic.wad", str(stock.with_suffix(".wad"))))
    frames = []
    for config in (own, stock):
        game = engine.start_engine(config, 120, 160)
        game.set_seed(1)
        game.new_episode()
        frames.append(game.get_state().screen_buffer.tobytes())
        game.close()
    assert frames[0] == frames[1]
    monkeypatch.setattr(engine, "_try_scenario", pytest.fail)
    monkeypatch.setattr(engine.Engine, "init", lambda game: None)
    engine.start_engine(own, 120, 160).close()


LOCKED = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
    mutex = (ctypes.c_char * 40).from_buffer(memory, int(sys.argv[2]))
    attributes = ctypes.create_string_buffer(8)
    libc.pthread_mutexattr_init(attributes)
    libc.pthread_mutexattr_setpshared(attributes, 1)
    libc.pthread_mutex_init(mutex, attributes)
    libc.pthread_mutex_lock(mutex)
    print("locked", flush=True)
    sys.stdin.read()
    os._exit(0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's mutexes are known")
def test_a_mutex_is_unlocked_once_its_owner_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(8192))
    owner = subprocess.Popen(
        [sys.executable, "-c", LOCKED, path, "48"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "locked\n"
    locked = path.read_bytes()
    assert engine.unlock(path) == 0
    assert path.read_bytes() == locked
    owner.communicate()
    assert engine.unlock(path) == 1
    assert engine.unlock(path) == 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        mutex = (ctypes.c_char * 40).from_buffer(memory, 48)
        assert ctypes.CDLL(None).pthread_mutex_trylock(mutex) == 0
        del mutex


@pytest.mark.engine
def test_too_little_shared_memory_is_one_clear_line(tmp_path: Path) -> None:
    small = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    program = (
        "import sys\n"
        "from camal_rl import doom\n"
        "from camal_rl.errors import UserError, print_mistake\n"
        "doom.DoomVectorEnv('Basic', 2).close()\n"
        "try:\n"
        "    doom.DoomVectorEnv('Basic', 3)\n"
        "except UserError as mistake:\n"
        "    sys.exit(print_mistake(mistake))\n"
    )
    result = run("-c", program, folder=tmp_path, prefix=small)
    assert result.returncode == 2
    assert "2.0 MiB free, and 3 game engines need 3 MiB" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.engine
def test_a_folder_without_engines_ends_no_other_process(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", "*"])
    program = "import os\nfrom camal_rl.game import engine\nprint(engine.engine_folder(os.getpid()))\n"
    result = run("-c", program, folder=tmp_path)
    assert result.returncode == 0
    assert wait_until(lambda: not Path(result.stdout.strip()).exists())
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_an_engine_that_ends_is_one_line_to_the_user() -> None:
    with pytest.raises(UserError, match=r"ended unexpectedly \(it was killed\)"), engine.engine_errors_told():
        raise vizdoom.ViZDoomUnexpectedExitException("it was\n killed")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("available_buttons = { TURN_LEFT_RIGHT_DELTA }", "no binary button"),
        ("available_buttons = { ATTACK }\ndoom_game_path = none.wad", r"none\.wad.* does not exist"),
    ],
)
def test_a_cfg_with_which_no_game_can_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    (tmp_path / "mine.cfg").write_text(line)
    monkeypatch.setattr(engine, "_tried", {tmp_path / "mine.cfg"})
    definition = dataclasses.replace(load_definition("Basic"), scenario=tmp_path / "mine.cfg")
    with pytest.raises(UserError, match=words) as caught:
        doom.DoomEnv(definition, render_resolution=SMALL)
    assert left_of(own_engines()) == []
    assert caught.tb is not None, "which keeps the environment alive, so it was closed and not collected"


class StuckGame(engine.Engine):
    """An engine that is in a call, its process killed or not, without a process."""

    ended = True
    unlocked = killed = 0

    @property
    def process(self) -> int | None:
        return None if self.ended else 1

    def kill(self) -> None:
        self.killed += 1

    def _unlock(self) -> None:
        self.unlocked += 1


def test_a_call_that_takes_long_is_helped_once_its_process_has_ended_and_ended_once_it_is_late() -> None:
    game = StuckGame(time_limit=300)
    game._limit = 20
    for seconds, ended, expected in (
        (None, True, (0, 0)),
        (0.5, True, (0, 0)),
        (2, True, (1, 0)),
        (2, False, (1, 0)),
        (21, False, (1, 1)),
    ):
        game.busy_since = None if seconds is None else time.monotonic() - seconds
        game.ended = ended
        game.end_if_late()
        assert (game.unlocked, game.killed) == expected
