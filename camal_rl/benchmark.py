"""Speed, overhead and memory, measured: training's own functions against the goals that the README quotes.

Each part measures one thing, as ratios of what was measured in turns, and keeps every repetition in
`benchmark.json`. A part that is measured again replaces its own results there, and no others.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from camal_rl.errors import UserError, print_mistake
from camal_rl.game.definition import load_definition
from camal_rl.run.command_line import refuse_options, split_arguments
from camal_rl.run.files import make_folder, write_together

if TYPE_CHECKING:
    from camal_rl.benchmark_parts import Settings

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Part = Literal[
    "overhead", "peers", "rollout", "runs", "extraction", "scaling", "startup", "profile", "vision"
]
PARTS: tuple[Part, ...] = (
    "overhead",
    "peers",
    "rollout",
    "runs",
    "extraction",
    "scaling",
    "startup",
    "profile",
    "vision",
)
"""In the order in which they are measured."""
FORMAT = 1


@dataclass
class Args:
    """Measure speed and memory. Parts: overhead (CAMAL's cost), peers (other libraries), rollout (beside the
    raw engine), runs (several at once), extraction (the paper's Figure 2), scaling (sizes and memory),
    startup, profile (where time goes), vision (Table 6). Parts that were measured before stay in the results.

    Options after -- go to every training; python -m camal_rl.ppo --help lists them.
    """

    parts: tyro.conf.Positional[tuple[Part, ...]] = ()
    """what to measure; without one, all but peers and vision"""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/benchmark")
    """folder for benchmark.json, benchmark.md and figures"""
    repetitions: Count = 5
    """of each measurement"""
    iterations: Count = 10
    """of training in each repetition"""
    env: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Basic"
    """or .toml file; python -m camal_rl.environments lists them"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    precision: Annotated[Literal["auto", "fp32", "bf16"], tyro.conf.arg(metavar="NAME")] = "auto"
    """fp32, bf16, or auto: bf16 where the hardware has it"""
    torch_threads: Count = 0
    """CPU threads of an update, 0 for all cores"""
    peers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PYTHON")] = ()
    """interpreters that have sample-factory or stable-baselines3, which the part peers measures"""


def parse_args(arguments: Sequence[str] | None = None) -> tuple[Args, list[str]]:
    """Read the command line: own options, and those after `--`, which are for training."""
    own, train = split_arguments(arguments)
    return tyro.cli(Args, prog="python -m camal_rl.benchmark", args=own), train


OWN = ("env", "method", "seed", "total-timesteps", "runs-dir", "device", "precision", "torch-threads")
"""Options of a training that the benchmark sets."""


def chosen_parts(args: Args) -> list[Part]:
    """What to measure, in order."""
    if args.parts:
        return [part for part in PARTS if part in args.parts]
    return [part for part in PARTS if part != "vision" and (part != "peers" or args.peers)]


def settings_of(args: Args, train: Sequence[str]) -> Settings:
    """How to measure.

    Raises:
        UserError: arguments with which that can't be done.
        SystemExit: code 2, an option that `camal_rl.ppo` does not understand.
    """
    import torch

    from camal_rl import ppo
    from camal_rl.benchmark_parts import Settings, training_args
    from camal_rl.run.device import choose_device

    for option, value, least in (
        ("repetitions", args.repetitions, 1),
        ("iterations", args.iterations, 1),
        ("torch-threads", args.torch_threads, 0),
    ):
        if value < least:
            raise UserError(f"--{option} {value}: give a number of at least {least}.")
    refuse_options(OWN, train, "training", "benchmark")
    threads = args.torch_threads or torch.get_num_threads()
    options = ("--env", args.env, "--device", args.device, "--precision", args.precision)
    settings = Settings(
        (*options, "--torch-threads", str(threads), *train), args.repetitions, args.iterations
    )
    planned = training_args(settings, Path())
    ppo.check_args(planned)
    choose_device(args.device)
    load_definition(args.env)
    return settings


def command(part: Part, args: Args, train: Sequence[str]) -> str:
    """The command that measures one part so, whatever else this one did, and without this machine's paths."""
    usual = asdict(Args())
    words: list[str] = [part]
    for name, value in asdict(args).items():
        if name not in ("parts", "output", "peers") and value != usual[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if part == "peers":
        words += ["--peers", *(f"{peer.partition('=')[0]}=PYTHON" for peer in args.peers)]
    return f"python -m camal_rl.benchmark {shlex.join([*words, *(['--', *train] if train else [])])}"


def earlier_results(folder: Path) -> dict[str, Any]:
    """What parts measured before, by part.

    Raises:
        UserError: there is a file which is not a benchmark's.
    """
    file = folder / "benchmark.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not content["parts"].keys() <= set(PARTS):
            raise ValueError("another format")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} can't be added to ({' '.join(str(error).split())}): move it away, "
            "or choose another --output."
        ) from error
    return cast("dict[str, Any]", content["parts"])


def save(folder: Path, parts: Mapping[str, Any]) -> list[Path]:
    """Write all results, and return the files.

    Raises:
        UserError: they can't be written.
    """
    from camal_rl.benchmark_tables import documents

    content = {"format": FORMAT, "parts": {part: parts[part] for part in PARTS if part in parts}}
    files = {"benchmark.json": (json.dumps(content, indent=1) + "\n").encode()} | documents(parts)
    write_together({folder / name: data for name, data in files.items()})
    return [folder / name for name in files]


def run(args: Args, train: Sequence[str]) -> None:
    """Measure part after part, each saved as soon as it is there.

    Raises:
        UserError: arguments, folder or peers with which that can't be done.
    """
    from camal_rl import benchmark_parts
    from camal_rl.benchmark_tables import ACCOUNTS, goal

    wanted = chosen_parts(args)
    settings = settings_of(args, train)
    interpreters = benchmark_parts.check_peers(args.peers)
    if "peers" in wanted:
        missing = [peer for peer in benchmark_parts.PEERS if peer not in interpreters]
        how = [
            f"{benchmark_parts.installation(peer)}, then --peers {peer}={peer}/bin/python" for peer in missing
        ]
        if not interpreters:
            raise UserError(f"peers: name at least one with --peers. To install them: {'; or '.join(how)}.")
        for peer, words in zip(missing, how, strict=True):
            print(f"{peer} is not measured. To install it: {words}", flush=True)
    make_folder(args.output)
    results = earlier_results(args.output)
    machine = benchmark_parts.machine(settings)
    files = save(args.output, results)
    for part in wanted:
        if part == "peers":
            result = benchmark_parts.peers(settings, interpreters)
        else:
            result = getattr(benchmark_parts, part)(settings)
        results[part] = {"machine": machine, "command": command(part, args, train), "result": result}
        files = save(args.output, results)
        for finding in ACCOUNTS[part](result, machine).findings:
            name, value, wanted_value, met = goal(finding)
            print(f"{name}: {value}; goal: {wanted_value}: {'met' if met == 'yes' else 'missed'}", flush=True)
    print("\n".join(f"  {file}" for file in files))


def main(args: Args, train: Sequence[str]) -> int:
    """Measure, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if not received:  # a second one would interrupt the ending of engines
            received.append(number)
            os.write(2, b"\nStopping.\n")
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        run(args, train)
    except UserError as mistake:
        return print_mistake(mistake)
    except KeyboardInterrupt:
        print(f"Stopped. Finished parts are in {args.output / 'benchmark.json'}.", file=sys.stderr)
        return 128 + received[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(*parse_args()))
