"""What of this machine works for camal_rl, what does not, and what to do about it: text for a bug report.

Each check imports what it is about by itself, so that whatever is missing or broken is a line among others.
Checks that run machine code of others do so in a process of their own, which may crash or hang.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.game.definition import available, load_definition
from camal_rl.run import runner
from camal_rl.run.files import write_whole

if TYPE_CHECKING:
    from camal_rl.doom import DoomEnv

Mark = Literal["ok", "warning", "FAILED"]


class Finding(NamedTuple):
    """A thing that a check found."""

    mark: Mark
    text: str
    advice: str = ""
    """What to do about it."""


class Check(NamedTuple):
    """Something to look at on this machine."""

    name: str
    """As `--check` takes it."""
    function: Callable[[], Iterator[Finding]]
    advice: str
    """What to do where the function raises."""
    apart: bool = False
    """Whether it is made in a process of its own."""


WIDTH = 100
"""Of a line, in characters."""
PATIENCE = 120.0
"""Seconds that a check in a process of its own may take; importing torch may need many."""
LONGEST = 400
"""Characters that are shown of what an error says."""


# ------------------------------------------------------------------------------------------------------------
# What is installed

MODULES = {"opencv-python": "cv2", "pillow": "PIL"}
"""Modules that are not called what is installed for them; other builds of it have them too."""
MAIN = ("torch", "vizdoom", "gymnasium", "numpy", "opencv-python")
"""What is looked for where nothing says what camal_rl needs."""
EXTRAS = {"ray": "only for camal_rl.experiment --ray", "torchvision": "camal_rl itself needs none"}
"""What may be missing: name -> what for."""


def check_versions() -> Iterator[Finding]:
    """Versions of all that camal_rl needs, and whether they are those that it asks for."""
    libc = " ".join(platform.libc_ver())
    system = f"{platform.system()} {platform.release()} {platform.machine()}{', ' + libc if libc else ''}"
    with suppress(OSError):
        system += f", {platform.freedesktop_os_release()['PRETTY_NAME']}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield Finding("ok", f"camal_rl {__version__}, {python}, {system}")
    try:
        requirements = metadata.requires("camal-rl") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "warning",
            f"camal_rl is not installed: only {', '.join(MAIN)} are looked for",
            "Install it in its folder: pip install .",
        )
        requirements = list(MAIN)
    found, problems = [], []
    for requirement in requirements:
        name, ranges = parse_requirement(requirement)
        if name is None:
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(_missing(name, requirement))
            continue
        found.append(f"{name} {version}")
        if not meets(version, ranges):
            problems.append(
                Finding(
                    "warning",
                    f"{name} {version} is not what camal_rl asks for: {ranges}",
                    f"pip install '{name}{ranges}'",
                )
            )
    yield Finding("ok", ", ".join(found))
    yield from problems
    for name, purpose in EXTRAS.items():
        try:
            yield Finding("ok", f"{name} {metadata.version(name)} ({purpose})")
        except metadata.PackageNotFoundError:
            yield Finding("ok", f"{name} is not installed ({purpose})")


def parse_requirement(requirement: str) -> tuple[str | None, str]:
    """Name and range of versions of an entry `name>=1,<2; marker`; no name where it is not for this Python.

    Of markers it knows those that camal_rl's own requirements have.
    """
    wanted, _, marker = requirement.partition(";")
    if "extra" in marker:
        return None, ""
    limit = re.search(r"python_version\s*([<>=!]+)\s*[\"']([\d.]+)", marker)
    if limit and not meets(platform.python_version(), limit[1] + limit[2]):
        return None, ""
    name = re.match(r"[\w.-]+", wanted.strip())
    return (name[0], wanted.strip()[name.end() :].strip(" ()")) if name else (None, "")


def meets(version: str, ranges: str) -> bool:
    """Whether a version is in a range such as `>=1.2,<2`, as far as numbers go."""
    for operation, bound in re.findall(r"([<>=!]=?)\s*([\d.]+)", ranges):
        pairs = zip_longest(_numbers(version), _numbers(bound), fillvalue=0)
        order = next((-1 if mine < other else 1 for mine, other in pairs if mine != other), 0)
        allowed = {">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0, "!=": order != 0}
        if not allowed.get(operation, order == 0):
            return False
    return True


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in release[0].split(".")] if release else []


def _missing(name: str, requirement: str) -> Finding:
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is not None:
        return Finding("ok", f"{name} is not installed, but another package has its {MODULES[name]}")
    return Finding(
        "FAILED", f"{name} is not installed", f"pip install '{requirement.partition(';')[0].strip()}'"
    )


VARIABLES = {
    "OMP_NUM_THREADS": "threads of torch, unless --torch-threads is given",
    "MKL_NUM_THREADS": "threads of torch's matrix products",
    "OMP_WAIT_POLICY": "what torch's threads do while they wait; camal_rl makes it PASSIVE if it is not set",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch sees",
    "LD_PRELOAD": "libraries loaded before all others, such as an allocator",
}
VARIABLE_PREFIXES = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "CUDA_", "PYTORCH_", "TORCH_", "ATEN_")


def check_variables() -> Iterator[Finding]:
    """Environment variables that change what camal_rl computes with, or how fast."""
    chosen = [name for name in os.environ if name in VARIABLES or name.startswith(VARIABLE_PREFIXES)]
    for name in sorted(chosen):
        value = os.environ[name]
        text = f"{name}={value}"
        if name == "OMP_WAIT_POLICY" and value.upper() == "ACTIVE":
            yield Finding(
                "warning",
                f"{text}: waiting threads take the cores from the game engines",
                "unset OMP_WAIT_POLICY",
            )
        else:
            yield Finding("ok", f"{text} ({VARIABLES[name]})" if name in VARIABLES else text)
    if not chosen:
        yield Finding("ok", "none is set that changes what torch does")


# ------------------------------------------------------------------------------------------------------------
# What the machine has

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Instructions of x86 that matter: the last three compute in bf16."""


def check_cpu() -> Iterator[Finding]:
    """The processor, and how many of its cores are for this process."""
    from camal_rl.run import machine

    name, has = machine.processor()
    cores = machine.allowed_cores()
    yield Finding("ok", f"{name}, {cores} of {os.cpu_count() or 1} cores for this process")
    share = machine.core_share()
    if share is not None and share < cores:
        yield Finding("ok", f"the container may use {share:g} cores' time: {machine.cores()} threads train")
    if has is None:
        return
    present, absent = ([one for one in FEATURES if (one in has) is which] for which in (True, False))
    text = f"has {', '.join(present) or 'none'} of {', '.join(FEATURES)}"
    if "avx2" in absent:
        yield Finding("warning", f"{text}: torch is slow without avx2", "Train on a newer CPU, or on a GPU.")
    else:
        yield Finding("ok", f"has {', '.join(present)}{'; not ' + ', '.join(absent) if absent else ''}")


def check_memory() -> Iterator[Finding]:
    """Memory of the machine and of the container, and how many runs at once it bears."""
    from camal_rl.run import machine

    parts = []
    installed = machine.installed_memory()
    if installed is not None:
        parts.append(f"{_size(installed)} in all")
    limit = machine.memory_limit()
    if limit is not None:
        parts.append(f"{_size(limit)} for this container")
    left = machine.available_memory()
    parts.append("the system does not say how much is free" if left is None else f"{_size(left)} available")
    parts.append(f"camal_rl.experiment does {runner.bearable_jobs()} runs at once")
    if left is not None and left < runner.CELL_MEMORY:
        advice = f"A run with the default sizes needs 0.6 GiB, larger ones {_size(runner.CELL_MEMORY)}: "
        yield Finding("warning", "; ".join(parts), f"{advice}free some memory, or give the container more.")
    else:
        yield Finding("ok", "; ".join(parts))


SHARED_MEMORY = Path("/dev/shm")
GAMES = 8
"""Of a training, by default (paper, Table 8)."""
MOST_ENGINES = 1000
"""More are not counted."""


def check_shared_memory() -> Iterator[Finding]:
    """How many game engines shared memory can hold."""
    from camal_rl.game import engine

    if not SHARED_MEMORY.is_dir():
        yield Finding(
            "warning",
            f"there is no {SHARED_MEMORY}, so nothing says how many engines fit",
            "Nothing, if the check of the engine is ok.",
        )
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    fit = min(usage.free // engine.ENGINE_MEMORY, MOST_ENGINES)
    count = f"{fit} or more" if fit == MOST_ENGINES else f"{fit}"
    text = f"{SHARED_MEMORY}: {_size(usage.total)}, {_size(usage.free)} free, room for {count} game engines"
    if fit >= GAMES:
        yield Finding("ok", text)
    else:
        yield Finding(
            "warning" if fit else "FAILED",
            f"{text}; a training starts {GAMES}",
            "Free some, give a container more (docker run --shm-size=1g), or train with fewer --num-envs.",
        )


LEAST_TEMPORARY = 100 * 2**20
"""Bytes; videos are made in the temporary folder."""


def check_temporary_folder() -> Iterator[Finding]:
    """Whether files can be made and programs be started in the folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="camal_rl-") as folder:
        program = Path(folder) / "program"
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o700)
        try:
            subprocess.run([program], check=True, stdin=subprocess.DEVNULL, timeout=10)
            starts = True
        except PermissionError:
            starts = False
        free = shutil.disk_usage(folder).free
    where = f"{tempfile.gettempdir()}: {_size(free)} free"
    advice = "Set TMPDIR to another folder (export TMPDIR=...)."
    if not starts:
        yield Finding(
            "warning",
            f"{where}, but no program can be started there (noexec): game engines stay behind when a "
            "training is killed",
            advice,
        )
    elif free < LEAST_TEMPORARY:
        yield Finding("warning", f"{where}: little for a video", f"Free some space. {advice}")
    else:
        yield Finding("ok", f"{where}, and programs can be started there")


LEAST_SPACE = 500 * 2**20
"""Bytes; a checkpoint takes 20 MiB, and twice as many while it is written."""


def check_write_access(runs_dir: Path) -> Iterator[Finding]:
    """Whether runs can be written; in the end all is as it was, also where the folder was not there."""
    made = [folder for folder in (runs_dir, *runs_dir.parents) if not folder.exists()]
    probe = runs_dir / f".doctor.{os.getpid()}"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        write_whole(probe, b"")  # as runs are: made, synchronised, renamed
        locks = locks_work(probe)
        probe.unlink()
        free = shutil.disk_usage(runs_dir).free
    finally:
        with suppress(OSError):
            probe.unlink()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    where = f"{runs_dir}{' (not there yet)' if made else ''}: can be written, {_size(free)} free"
    if free < LEAST_SPACE:
        yield Finding("warning", where, "Free some space, or choose another --runs-dir.")
    elif locks:
        yield Finding("ok", f"{where}, file locks work")
    if not locks:
        yield Finding(
            "warning",
            f"{where}, but file locks don't work: nothing keeps two processes out of one run's folder",
            "Start no run twice at the same time, or choose a --runs-dir on a local disk.",
        )


def locks_work(path: Path) -> bool:
    """Whether a lock on a file keeps others from having it too."""
    import fcntl

    exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
    with path.open("ab") as first, path.open("ab") as second:
        try:
            fcntl.flock(first, exclusive)
        except OSError:
            return False
        try:
            fcntl.flock(second, exclusive)
        except BlockingIOError:
            return True
    return False


def check_compiler() -> Iterator[Finding]:
    """Whether there is a C++ compiler, which people ask for in vain: camal_rl needs none."""
    found = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    yield Finding("ok", f"C++: {', '.join(found) or 'none'} (not needed)")


# ------------------------------------------------------------------------------------------------------------
# What runs


def check_scenarios() -> Iterator[Finding]:
    """Whether the definition, the .cfg and the WAD of every environment are there."""

    names, broken = available(), 0
    for name in names:
        try:
            load_definition(name)
        except UserError as mistake:
            broken += 1
            yield Finding("FAILED", _one_line(mistake), "pip install --force-reinstall --no-deps vizdoom")
    if not names:
        yield Finding("FAILED", "camal_rl has no environments", "Install camal_rl again, with its envs/.")
    elif not broken:
        yield Finding("ok", f"all {len(names)} environments can be loaded")


SEED = 1
TIMED_STEPS = 300
"""Agent steps that are timed."""
REPLAYED_STEPS = 100
"""Agent steps that a second engine plays again: more than an episode of Basic has."""


def check_engine() -> Iterator[Finding]:
    """Whether the game engine starts, is fast, sees targets, and plays the same game again."""
    import numpy as np

    from camal_rl import doom

    envs: list[doom.DoomEnv] = []
    actions = np.random.default_rng(SEED).integers(2**30, size=TIMED_STEPS).tolist()
    try:
        began = time.perf_counter()
        envs.append(doom.DoomEnv("Basic", render_mode="rgb_array"))
        envs[0].reset(seed=SEED)
        started = time.perf_counter() - began
        began = time.perf_counter()
        for _ in _play(envs[0], actions):
            pass
        rate = TIMED_STEPS / (time.perf_counter() - began)
        yield Finding(
            "ok",
            f"started in {started:.2f} s; {rate:.0f} steps a second (one engine, one thread, 320x240, "
            f"{envs[0].definition.frame_skip} tics a step)",
        )
        envs.append(doom.DoomEnv(envs[0].definition, render_mode="rgb_array"))
        first, second = (_seen(env, actions[:REPLAYED_STEPS]) for env in envs)
        visible = sum(any(mask) for _, mask in first)
        if visible:
            yield Finding("ok", f"label buffer: a target in {visible} of {len(first)} frames of Basic")
        else:
            yield Finding(
                "FAILED",
                f"label buffer: no target in any of {len(first)} frames of Basic",
                "pip install --force-reinstall vizdoom; if that does not help, report this.",
            )
        differing = sum(one != other for one, other in zip(first, second, strict=True))
        if differing:
            yield Finding(
                "FAILED",
                f"replay: {differing} of {len(first)} frames or masks differ in a second engine",
                "A run that is stopped would go on differently: report this with your CPU and ViZDoom.",
            )
        else:
            yield Finding("ok", f"replay: a second engine gives the same {len(first)} frames and masks")
        restarts = sum(env.restarts for env in envs)
        if restarts:
            yield Finding(
                "warning",
                f"an engine ended or hung {restarts} times and was replaced",
                "Check free memory (`free -m`) and what may have ended it (`dmesg`).",
            )
    finally:
        for env in envs:
            env.close()


def _play(env: DoomEnv, actions: Sequence[int]) -> Iterator[None]:
    """Play from the seed on, with a stop at every frame; actions count modulo those that there are."""
    env.reset(seed=SEED)
    for action in actions:
        yield
        if any(env.advance(action % len(env.actions))[1:]):
            env.begin_episode()


def _seen(env: DoomEnv, actions: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """Every frame of a game, as it was drawn, and its mask."""
    seen = []
    for _ in _play(env, actions):
        frame = env.render()
        assert frame is not None
        seen.append((frame.tobytes(), env.mask.tobytes()))
    return seen


BATCH = 32
"""Frames of a training step here; one of training has 256."""


def check_torch() -> Iterator[Finding]:
    """The device and the precision that training chooses, and a step of learning in them."""
    import torch

    from camal_rl import ppo
    from camal_rl.run.device import choose_device, choose_precision

    device = choose_device("auto")
    precision = choose_precision("auto", device)
    if torch.cuda.is_available():
        cuda = f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    else:
        cuda = (
            f"no CUDA ({'torch is built without it' if torch.version.cuda is None else 'torch finds no GPU'})"
        )
    mps = "MPS" if torch.backends.mps.is_available() else "no MPS"
    threads = torch.get_num_threads()
    yield Finding(
        "ok",
        f"--device auto is {device}, --precision auto is {precision}; {cuda}, {mps}; {threads} CPU threads",
    )
    if device.type == "cpu" and has_nvidia_driver():
        yield Finding(
            "warning",
            "there is an NVIDIA GPU driver, but torch can't use it",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, and install the torch for that driver's CUDA: "
            "https://pytorch.org/get-started/locally",
        )
    torch.set_num_threads(1)  # several wait for each other, longer the busier the machine
    try:
        torch.manual_seed(SEED)
        agent = ppo.Agent(4, (4, 84, 84), precision).to(device)
        images = torch.randint(256, (BATCH, 4, 84, 84), dtype=torch.uint8, device=device)
        for _ in range(2):  # the first one takes longer: it sets up what is kept
            began = time.perf_counter()
            agent.zero_grad()
            weights = agent.weights("gradcam")
            output = agent(images, weights)
            loss = output.heads.square().mean() + agent.cam(output, "gradcam", weights=weights).mean()
            loss.backward()
            gradients = [parameter.grad for parameter in agent.parameters() if parameter.grad is not None]
            finite = all(bool(numbers.isfinite().all()) for numbers in (loss.detach(), *gradients))
            milliseconds = 1000 * (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    step = f"forward and backward of {BATCH} frames (one CPU thread)"
    if finite and len(gradients) == len([*agent.parameters()]):
        yield Finding("ok", f"{step} in {milliseconds:.0f} ms, all finite")
    else:
        yield Finding(
            "FAILED",
            f"{step} gives NaN, infinity or no gradient in {precision}",
            "Train with --precision fp32, or --device cpu, and report this.",
        )


def has_nvidia_driver() -> bool:
    """Whether the system has one, for a GPU that torch may not see."""
    return Path("/proc/driver/nvidia/version").exists()


def check_video() -> Iterator[Finding]:
    """Whether an H.264 video can be made."""
    import numpy as np

    from camal_rl.results import media

    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1] = 255
    yield Finding("ok", f"H.264: two frames are {len(media.encode_video(frames, 10))} bytes")


def checks(runs_dir: Path) -> list[Check]:
    """All checks, in the order in which they are made; the first are those that others are explained by."""
    report = "Report this."
    torch_advice = "Install torch again (pip install --force-reinstall torch), or try --precision fp32."
    engine_advice = (
        "Install ViZDoom again (pip install --force-reinstall vizdoom). If only this fails, report it."
    )
    video_advice = "Training needs no video; evaluate with --video-episodes 0."
    return [
        Check("versions", check_versions, report),
        Check("variables", check_variables, report),
        Check("cpu", check_cpu, report),
        Check("memory", check_memory, report),
        Check("shared-memory", check_shared_memory, engine_advice, apart=True),
        Check(
            "temporary-folder",
            check_temporary_folder,
            "Set TMPDIR to a folder that can be written (export TMPDIR=...).",
        ),
        Check(
            "write-access",
            partial(check_write_access, runs_dir),
            "Give a folder that can be written with --runs-dir, here and when training.",
        ),
        Check("compiler", check_compiler, report),
        Check("scenarios", check_scenarios, engine_advice, apart=True),
        Check("engine", check_engine, engine_advice, apart=True),
        Check("torch", check_torch, torch_advice, apart=True),
        Check("video", check_video, video_advice, apart=True),
    ]


# ------------------------------------------------------------------------------------------------------------
# Making checks


def examine(check: Check) -> Iterator[Finding]:
    """What a check finds, in this process; what it raises is its last finding."""
    try:
        yield from check.function()
    except Exception as error:
        yield failure(error, check.advice)


def failure(error: Exception, advice: str) -> Finding:
    """A finding of an exception, in one line."""
    if isinstance(error, UserError):  # is made for users
        return Finding("FAILED", _one_line(error), advice)
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        name = next((name for name, one in MODULES.items() if one == module), module)
        advice = f"pip install {name}"
    elif isinstance(error, ImportError):
        advice = "Install that package again. If a library is named: install it with the system's packages."
    return Finding("FAILED", f"{type(error).__name__}: {_one_line(error)}", advice)


def answer(name: str) -> None:
    """Make a check in this process, which is there for it: its findings go to standard output in JSON."""
    # Engines write to standard output too.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)
        (check,) = (check for check in checks(Path()) if check.name == name)
        for finding in examine(check):
            print(json.dumps(finding), file=results, flush=True)


def question(name: str) -> list[str]:
    """The command whose process calls `answer`."""
    return [sys.executable, "-c", f"from camal_rl import doctor; doctor.answer({name!r})"]


def examine_apart(check: Check) -> Iterator[Finding]:
    """What a check finds in a process of its own. That it crashes or hangs is a finding, after its others."""
    late = False
    with subprocess.Popen(
        question(check.name),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own, with its engines: all can be ended at once
    ) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            late = process.poll() is None  # else only an engine that it has left holds the pipes
            _end(process)
            output, errors = process.communicate()
        except BaseException:
            _end(process)
            raise
    for line in output.decode().split("\n")[:-1]:
        yield Finding(*json.loads(line))
    if late:
        yield Finding("FAILED", f"hung: it was ended after {PATIENCE:g} seconds", check.advice)
    elif process.returncode:
        said = _one_line(next(reversed(errors.decode(errors="replace").strip().splitlines()), ""))
        yield Finding("FAILED", f"{_ending(process.returncode)}{': ' + said if said else ''}", check.advice)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


CAUSES = {
    signal.SIGILL: "the CPU lacks an instruction that was used",
    signal.SIGBUS: "shared memory or a disk is full",
    signal.SIGKILL: "memory may have run out",
}


def _ending(code: int) -> str:
    """How a process ended, by its return code."""
    if code > 0:
        return f"its process ended with code {code}"
    number = signal.Signals(-code)
    return f"its process crashed ({number.name}{', ' + CAUSES[number] if number in CAUSES else ''})"


def report(chosen: Sequence[Check]) -> int:
    """Make checks, print what they find, and return the exit code: 1 if something failed."""
    failed, warned = [], []
    for check in chosen:
        apart = check._replace(function=partial(examine_apart, check)) if check.apart else check
        shown_name = check.name.replace("-", " ")
        for finding in examine(apart):
            print(rendered(shown_name, finding), flush=True)
            if finding.mark == "FAILED" and shown_name not in failed:
                failed.append(shown_name)
            elif finding.mark == "warning" and shown_name not in warned:
                warned.append(shown_name)
    warnings = f" Warnings: {', '.join(warned)}." if warned else ""
    if failed:
        plural = "" if len(failed) == 1 else "s"
        print(f"\n{len(failed)} check{plural} failed: {', '.join(failed)}.{warnings}")
    elif len(chosen) == len(checks(Path())):
        print(f"\nAll that camal_rl needs works here.{warnings}")
    else:
        print(f"\nWhat was checked works here.{warnings}")
    return 1 if failed else 0


def rendered(name: str, finding: Finding) -> str:
    """A finding as lines of at most `WIDTH` characters, as far as words allow."""
    start, indent = f"{finding.mark:9}{name:18}", " " * 27
    fill = partial(textwrap.fill, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = [fill(without_home(finding.text), initial_indent=start, subsequent_indent=indent)]
    if finding.advice:
        advice = without_home(finding.advice)
        lines.append(fill(advice, initial_indent=f"{indent}-> ", subsequent_indent=" " * 30))
    return "\n".join(lines)


def without_home(text: str) -> str:
    """A text with ~ for the user's home folder, which is nobody else's business."""
    try:
        home = Path.home()
        homes = {str(home), str(home.resolve())} - {"/", ""}
    except (RuntimeError, OSError):  # nobody says where it is
        return text
    for one in homes:
        text = re.sub(rf"(?<![\w.-]){re.escape(one.rstrip('/'))}(?![\w.-])", "~", text)
    return text


def _one_line(said: object) -> str:
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(said)).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    # Not tyro, which the other commands use: it may be what is missing.
    parser = argparse.ArgumentParser(
        prog="python -m camal_rl.doctor",
        description="Check what of this machine works for camal_rl. Ends with 1 if something does not. "
        "Paste the output into a bug report.",
    )
    names = [check.name for check in checks(Path())]
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs would be, else runs"
    )
    parser.add_argument(
        "--check",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"only these of {', '.join(names)}",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, and return the exit code: 0, 1 if something failed, 130 after Ctrl-C."""
    args = parse_args(arguments)
    try:
        return report([check for check in checks(args.runs_dir) if check.name in args.check])
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends what it has started
    sys.exit(main())
