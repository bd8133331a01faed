"""Training on this machine -> tables and figures of its speed and memory; the paper's Figure 2 and Table 6.

Every part calls training's own functions, or its command. Ways that are compared take turns, so that whatever
else the machine does hits all of them, and ratios are formed within a repetition.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import tyro

from camal_rl.errors import UserError
from camal_rl.run.command_line import NAME, Count, Positive, check_ranges, parse, run_at_once, words_of

Part = Literal["overhead", "rollout", "runs", "extraction", "scaling", "startup", "vision"]


@dataclass
class Args:
    """Measure speed and memory. A part that is measured again replaces its own results, and no others.

    Parts: overhead (CAMAL's cost), rollout (beside the raw engine), runs (several at once), extraction (the
    paper's Figure 2), scaling (sizes and memory), startup, vision (the paper's Table 6).
    """

    parts: tyro.conf.Positional[tuple[Part, ...]] = ()
    """parts to measure; all but vision, unless named"""
    env: Annotated[str, NAME] = "Basic"
    """environment or .toml file; python -m camal_rl.environments lists"""
    repetitions: Positive = 5
    """repetitions of every measurement; 1 with --quick"""
    quick: bool = False
    """measure once and at fewer sizes, in minutes instead of an hour"""
    output: Path = Path("runs/benchmark")
    """folder for benchmark.md, benchmark.json and figures"""
    device: Annotated[str, NAME] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    torch_threads: Count = 0
    """CPU threads that play and learn, 0 for all cores"""

    def __post_init__(self) -> None:
        check_ranges(self)


if __name__ == "__main__":
    ARGS = parse(Args, "python -m camal_rl.benchmark")  # before torch is imported: --help answers at once

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from camal_rl import attention, camal, ppo
from camal_rl.doom import FRAME_STACK, DoomVectorEnv, single_buttons
from camal_rl.game.definition import load_definition
from camal_rl.results.figures import DASHES, Table, colour, draw, markdown
from camal_rl.run.device import choose_device, choose_precision, prepare_device
from camal_rl.run.files import make_folder, write_together
from camal_rl.run.machine import cores, processor
from camal_rl.run.players import start_games
from camal_rl.run.workers import Workers

FORMAT = 2  # of benchmark.json
IMAGES = 32  # in a classifier's batch (Table 7)
Values = dict[str, list[float]]
"""Values of each way, such as a method, one a repetition: in ms, or as a way named SPS or MiB says."""
Cases = dict[str, Values]
"""Values by case, such as a size."""
Ways = Mapping[str, Callable[[], object]]
"""Functions that are timed, by name."""
progress = partial(tqdm, leave=False, disable=None)  # none where nobody looks
METHODS: tuple[Literal["camal", "vanilla"], ...] = ("camal", "vanilla")


class Plan(NamedTuple):
    """The measurements to make, how often and at which sizes."""

    base: ppo.Args  # options of every training
    repetitions: int
    turns: int = 5  # in a repetition, and iterations of a training
    resolutions: tuple[Literal["160x120", "320x240"], ...] = ("160x120", "320x240")
    games: tuple[int, ...] = (8,)  # of CAMAL's cost, and beside the raw engine
    runs: tuple[int, ...] = (1, 2, 3, 4)  # at once
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    num_envs: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cores: tuple[int, ...] = (1, 2)
    devices: tuple[str, ...] = ("auto",)
    frame_sizes: tuple[tuple[int, int], ...] = ((120, 160), (240, 320))
    length: int = 60  # iterations of the training whose memory is watched


def make_plan(args: Args) -> Plan:
    """Return what the command line asks for.

    Raises:
        UserError: there is no such environment or device.
    """
    load_definition(args.env)
    choose_device(args.device)
    threads = args.torch_threads or min(torch.get_num_threads(), cores())
    base = ppo.Args(env=args.env, device=args.device, torch_threads=threads)
    plan = Plan(base, args.repetitions, devices=(args.device,))
    if args.quick:
        plan = plan._replace(repetitions=1, turns=2, runs=(1, 2), batch_sizes=(1, 16, 128))
        plan = plan._replace(resolutions=("320x240",), num_envs=(2, 8), frame_sizes=((120, 160),), length=12)
    if threads > 4:
        plan = plan._replace(games=(2 * threads,), runs=(1, threads // 2, threads))
        plan = plan._replace(num_envs=(threads // 2, 2 * threads, 4 * threads))
        plan = plan._replace(cores=(1, 2, 4, *range(8, threads + 1, 8)))
        if args.quick:
            plan = plan._replace(num_envs=plan.num_envs[:2], cores=(1, threads // 4, threads))
    if choose_device(args.device).type == "cuda":
        plan = plan._replace(devices=("cpu", args.device))
    return plan


# --------------------------------------------------------------------------------------------- how to measure


def take_turns(ways: Ways, plan: Plan) -> Values:
    """Time functions in turns, after a call of each that does not count; return medians, one a repetition."""
    for function in ways.values():
        function()
    medians: Values = {way: [] for way in ways}
    for _ in progress(range(plan.repetitions)):
        times: Values = {way: [] for way in ways}
        for turn in range(plan.turns):
            for way in list(ways)[:: 1 if turn % 2 else -1]:  # or the first would always find the same caches
                began = time.perf_counter()
                ways[way]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[way].append(1000 * (time.perf_counter() - began))
        for way in ways:
            medians[way].append(float(np.median(times[way])))
    return medians


def train(args: ppo.Args, iterations: int, warmup: int = 2) -> tuple[float, list[float]]:
    """Train in a process of its own, as the command does; return SPS, and memory in MiB once a second.

    The time of the iterations that warm up does not count: a device and its libraries start in them.

    Raises:
        UserError: it failed.
    """
    args = dataclasses.replace(args, total_timesteps=(warmup + iterations) * args.batch_size)
    samples = []
    with tempfile.TemporaryDirectory(prefix="camal_rl-benchmark-") as folder:
        command = [sys.executable, "-m", "camal_rl.ppo", *words_of(args), "--runs-dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                while process.poll() is None:
                    samples.append(memory(process.pid))
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(1)
            finally:
                process.kill()
            said = process.communicate()[1].decode().splitlines()
        if process.returncode:
            raise UserError(f"a training failed: {said[-1].removeprefix('camal_rl: ') if said else '?'}")
        curves = next(Path(folder).rglob("curves.csv")).read_text()
    ended = [int(step) / float(sps) for step, sps in re.findall(r"charts/SPS,(\d+),(.+)", curves)]
    return iterations * args.batch_size / (ended[-1] - [0, *ended][warmup]), samples


def memory(process: int) -> float:
    """MiB of a process and all below it, what they share counted once (PSS); 0 where there is no /proc."""
    total = 0.0
    with suppress(OSError):  # it has ended meanwhile
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += sum(map(int, re.findall(r"^Pss: *(\d+) kB", text, re.MULTILINE))) / 1024
        children = [file.read_text().split() for file in Path(f"/proc/{process}/task").glob("*/children")]
        total += sum(map(memory, map(int, itertools.chain(*children))))
    return total


class Loop:
    """The body of the loop of `ppo.train`, without its run folder; `stack` ends engines and workers."""

    def __init__(self, args: ppo.Args, stack: ExitStack, play: Callable[..., Tensor] = ppo.rollout) -> None:
        self.args = args
        self.device, _, self.workers = prepare_device(args.device, args.precision, args.torch_threads, stack)
        definition = load_definition(args.env)
        torch.manual_seed(args.seed)
        image_shape = (FRAME_STACK, *args.frame_size)
        self.agent = ppo.Agent(len(single_buttons(definition.buttons())), image_shape).to(self.device)
        self.store = ppo.allocate(args, self.agent)
        make = partial(ppo.make_envs, definition, args)
        self.envs, self._play = start_games(make, play, self.agent, self.store, args, self.workers)
        stack.enter_context(closing(self.envs))
        self.envs.reset(seed=range(args.num_envs))
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.agent.parameters(), args.learning_rate, eps=1e-5, fused=fused)
        self.generator = torch.Generator(self.device)

    def play(self) -> Tensor:
        """Play a rollout, and return the values of the newest observations."""
        return self._play(np.random.default_rng(0).random((self.args.num_steps, self.args.num_envs)))

    def iterate(self) -> None:
        """Play and learn."""
        steps = (self.store.rewards, self.store.values, self.store.ends, self.play())
        advantages, returns = ppo.gae(*steps, self.args.gamma, self.args.gae_lambda)
        self.batch = ppo.flatten(self.store, advantages, returns, self.args, self.device)
        self.update()

    def update(self) -> None:
        """Learn from what the last iteration played."""
        ppo.update(self.agent, self.optimizer, self.batch, self.args, self.generator, self.workers)


# -------------------------------------------------------------------------------------------------- the parts


def overhead(plan: Plan) -> Cases:
    """Iterations (rollout and update, no logging), and updates alone, in turns.

    The learning rate is 0, so that both methods play the same games: some views take longer to draw.
    """
    cases = {}
    for games in plan.games:
        with ExitStack() as stack:
            base = dataclasses.replace(plan.base, num_envs=games, learning_rate=0.0)
            loops = {method: Loop(dataclasses.replace(base, method=method), stack) for method in METHODS}
            for part in ("iterate", "update"):
                ways: Ways = {method: getattr(loop, part) for method, loop in loops.items()}
                cases[f"{part}, {games} games"] = take_turns(ways, plan)
    return cases


def rollout(plan: Plan) -> Cases:
    """Rollouts of 128 agent steps in every game, and raw engines that as many processes or threads play.

    The raw engines are played at random, and frames and labels are taken.
    """
    cases = {}
    for resolution, games in itertools.product(plan.resolutions, plan.games):
        args = dataclasses.replace(plan.base, render_resolution=resolution, num_envs=games)
        with ExitStack() as stack:
            kinds = {"raw engine": play_raw, "rollout": ppo.rollout}
            ways: Ways = {way: Loop(args, stack, kind).play for way, kind in kinds.items()}
            cases[f"{games} games rendered at {resolution}"] = take_turns(ways, plan)
    return cases


def play_raw(
    agent: ppo.Agent,
    envs: DoomVectorEnv,
    store: ppo.Rollout,
    args: ppo.Args,
    draws: np.ndarray,
    workers: Workers,
) -> Tensor:
    """Act at random in every game's engine, and take frame and labels; no more. Arguments as of a rollout."""

    def play(games: slice) -> None:
        for actions in (draws[:, games] * len(envs.envs[0].actions)).astype(int).tolist():
            for env, action in zip(envs.envs[games], actions, strict=True):
                env.game.make_action(env.actions[action], env.definition.frame_skip)
                if env.game.is_episode_finished():
                    env.game.new_episode()
                state = env.game.get_state()
                _ = state.screen_buffer, state.labels_buffer

    workers.run(play, workers.slices(envs.num_envs))
    return torch.zeros(envs.num_envs)


def runs(plan: Plan) -> Cases:
    """SPS of several trainings at once, added up, each with one thread or with its share of all."""
    cases: Cases = defaultdict(lambda: defaultdict(list))
    all_threads = plan.base.torch_threads
    ways = [(count, of_each) for count in plan.runs for of_each in sorted({1, all_threads // count or 1})]
    for _, (count, of_each) in progress(list(itertools.product(range(plan.repetitions), ways))):
        args = [dataclasses.replace(plan.base, torch_threads=of_each, seed=seed) for seed in range(count)]
        with ThreadPoolExecutor(count) as pool:
            speeds = [sps for sps, _ in pool.map(train, args, [plan.turns] * count)]
        cases[f"{count} at once, torch threads: {of_each}"]["SPS"].append(sum(speeds))
    return cases


def extraction(plan: Plan) -> Cases:
    """A forward and backward pass in fp32, without attention and with attention extracted in three ways."""
    cases = {}
    with ExitStack() as stack:
        device, _, _ = prepare_device(plan.base.device, "fp32", plan.base.torch_threads, stack)
        torch.set_num_threads(plan.base.torch_threads)
        agent = ppo.Agent(4, (4, *plan.base.frame_size)).to(device)
        for size in plan.batch_sizes:
            images = torch.randint(256, (size, 4, *plan.base.frame_size), dtype=torch.uint8, device=device)
            mask_weights = torch.rand((size, 2, *agent.map_shape[1:]), device=device)
            ways = ("no attention", "one pass a sample", "one pass (Eq. 4)", "closed form")
            functions = {way: partial(extract, agent, images, mask_weights, way) for way in ways}
            cases[f"batch of {size}"] = take_turns(functions, plan)
    return cases


def extract(agent: ppo.Agent, images: Tensor, mask_weights: Tensor, way: str) -> None:
    """Make a forward and backward pass with attention extracted in one of the ways."""
    agent.zero_grad()
    output = agent(images)
    loss = output.value.square().mean() + output.logits.logsumexp(dim=1).mean()
    if way != "no attention":
        if way == "closed form":
            cam = attention.critic_cam(agent, output)
        else:
            per_sample = way == "one pass a sample"
            cam = attention.class_activation_map(output.feature_maps, output.value, per_sample=per_sample)
        alpha, beta = camal.projected_alpha_beta(attention.normalize(cam), mask_weights)
        loss = loss + (beta - alpha).mean()
    loss.backward()


def scaling(plan: Plan) -> Cases:
    """SPS, and highest memory of the trainer and its engines, what they share counted once (PSS).

    In the longer training, for whose thirds the median is shown, every iteration measures attention with a
    picture and saves a checkpoint.
    """
    on = {device: f", {device}" * (len(plan.devices) > 1) for device in plan.devices}
    most = max(8, max(plan.cores))
    varied: dict[str, dict[str, Any]] = {
        f"{number} games{text}": {"num_envs": number, "device": device}
        for device, text in on.items()
        for number in plan.num_envs
    }
    varied |= {
        f"{most} games, {number} cores, {way}": {"num_envs": most, "torch_threads": number, "play_in": way}
        for number in plan.cores
        for way in ("threads", "processes")
    }
    varied |= {f"frames of {h}x{w}": {"frame_size": (h, w)} for h, w in plan.frame_sizes}
    varied |= {
        f"rendered at {size}": {"render_resolution": size}
        for size in plan.resolutions
        if size != plan.base.render_resolution
    }
    cases: Cases = defaultdict(lambda: defaultdict(list))
    for _, (case, changes) in progress(list(itertools.product(range(plan.repetitions), varied.items()))):
        sps, samples = train(dataclasses.replace(plan.base, **changes), plan.turns)
        cases[case]["SPS"].append(sps)
        cases[case]["MiB"].append(max(samples))
    always = dataclasses.replace(plan.base, checkpoint_every=1, measure_every=1)
    sps, samples = train(always, plan.length)
    for third, part in enumerate(np.array_split(samples, 3), start=1):
        case = f"{plan.length} iterations, third {third}"
        cases[case] = {"SPS": [sps], "MiB": [float(np.median(part))]}
    return cases


def startup(plan: Plan) -> Cases:
    """New processes: one that prints its help, and one that ends after its first gradient step."""
    short = dataclasses.replace(plan.base, num_steps=2, num_minibatches=1, update_epochs=1, measure_every=0)
    command = [sys.executable, "-m", "camal_rl.ppo", "--help"]
    ways: Ways = {
        "--help": partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True),
        "first gradient step, and end": partial(train, short, 1, warmup=0),
    }
    return {"python -m camal_rl.ppo": take_turns(ways, plan)}


def vision(plan: Plan) -> Cases:
    """A training step of the paper's classifiers on 32 random images of 224x224, with CAMAL and without."""
    from camal_rl.vision import check_torchvision

    check_torchvision()
    from camal_rl.vision import models, processes, train

    cases, group = {}, processes.Group()
    with ExitStack() as stack:
        device, precision, _ = prepare_device(plan.base.device, "auto", plan.base.torch_threads, stack)
        torch.set_num_threads(plan.base.torch_threads)
        for name in models.ARCHITECTURES:
            model = models.Classifier(name, 37).to(device)  # as many classes as Oxford-IIIT-Pet has
            batch = train.Batch(
                images=torch.randint(256, (IMAGES, 3, 224, 224), dtype=torch.uint8),
                labels=torch.randint(37, (IMAGES,)),
                mask_weights=torch.rand(IMAGES, 2, *models.map_size(model, 224)),
                supervised=torch.full((IMAGES,), 1 / IMAGES),
                total=torch.tensor(IMAGES),
            ).to(device)
            optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
            step = partial(train.update, model, optimizer, batch, group=group, precision=precision)
            methods = {method: train.Args(model=cast(Any, name), method=method) for method in METHODS}
            cases[name] = take_turns({way: partial(step, args=args) for way, args in methods.items()}, plan)
    return cases


# ----------------------------------------------------------------------------------------- tables and figures


PARTS: dict[Part, tuple[Callable[[Plan], Cases], str, str]] = {
    "overhead": (overhead, "CAMAL's cost", "vanilla"),
    "rollout": (rollout, "Rollouts beside the raw engine", "rollout"),
    "runs": (runs, "Several trainings at once", ""),
    "extraction": (extraction, "Extraction of attention (the paper's Figure 2)", "no attention"),
    "scaling": (scaling, "Speed and memory against sizes", ""),
    "startup": (startup, "Starting", ""),
    "vision": (vision, "CAMAL's cost for classifiers (the paper's Table 6)", "vanilla"),
}
"""The function that measures each part, the part's title, and the way that the others are divided by."""


def tabulate(title: str, cases: Cases, baseline: str = "", note: str = "") -> Table:
    """Return a line a case: median [lowest to highest] of every way, and of its ratio to the baseline."""

    def shown(values: Any) -> str:
        numbers = np.quantile(values, (0.5, 0, 1))
        median, low, high = (f"{number:.3f}" if number < 10 else f"{number:.0f}" for number in numbers)
        return f"{median} [{low} to {high}]"

    ways = list(next(iter(cases.values())))
    others = [way for way in ways if baseline and way != baseline]
    lines = []
    for case, values in cases.items():
        ratios = [np.array(values[way]) / np.array(values[baseline]) for way in others]
        lines.append([case, *map(shown, [*values.values(), *ratios])])
    columns = [way if way in ("SPS", "MiB") else f"{way}, ms" for way in ways]
    return Table(title, ["", *columns, *(f"{way} / {baseline}" for way in others)], lines, note)


def draw_extraction(figure: Figure, cases: Cases) -> None:
    """Draw the time that extracting attention takes, over the batch size: the paper's Figure 2."""
    axes = figure.add_subplot(ylabel="time / time without attention", yscale="log")
    without, *ways = next(iter(cases.values()))
    for place, way in enumerate(ways):
        ratios = [np.array(values[way]) / values[without] for values in cases.values()]
        medians, low, high = np.quantile(ratios, (0.5, 0, 1), axis=1)
        axes.plot(list(cases), medians, DASHES[place], color=colour(place), marker="o", label=way)
        axes.fill_between(list(cases), low, high, color=colour(place), alpha=0.2, linewidth=0)
    axes.tick_params(axis="x", rotation=45)
    axes.legend(loc="upper left")


def draw_scaling(figure: Figure, cases: Cases) -> None:
    """Draw speed and memory of every size."""
    for place, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        axes.set_xlabel(unit := ("SPS", "MiB")[place])
        axes.barh(list(cases), [np.median(values[unit]) for values in cases.values()], color=colour(place))
    axes.invert_yaxis()


FIGURES = {"extraction": draw_extraction, "scaling": draw_scaling}

# ---------------------------------------------------------------------------------------------------- results


def machine(base: ppo.Args) -> str:
    """Return a line on what is measured on."""
    device = choose_device(base.device)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "vizdoom", "numpy"))
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{processor()}, {cores()} cores{gpu}; {choose_precision(base.precision, device)} on "
        f"{device.type}, {base.torch_threads} threads; Python {platform.python_version()}, {versions}."
    )


def earlier_results(file: Path) -> dict[str, Any]:
    """Return the parts that were measured before.

    Raises:
        UserError: the file is not this benchmark's.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            return dict(content["parts"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{file} can't be added to: move it away, or choose another --output.")


def write(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write all that was measured as data, tables and figures."""
    files: dict[str, bytes] = {}
    text = []
    for name, (measure, title, baseline) in PARTS.items():
        if name in parts:
            part = parts[name]
            note = " ".join((measure.__doc__ or "").split())
            text.append(markdown(tabulate(title, part["cases"], baseline, note)))
            if name in FIGURES:
                files |= draw(name, 4.0, partial(FIGURES[name], cases=part["cases"]))
                text.append(f"![{title}]({name}.png)\n")
            text.append(f"{part['machine']}\n\n```bash\n{part['command']}\n```\n")
    files["benchmark.json"] = (json.dumps({"format": FORMAT, "parts": parts}, indent=1) + "\n").encode()
    files["benchmark.md"] = "\n".join(text).encode()
    write_together({folder / name: content for name, content in files.items()})


def run(args: Args) -> None:
    """Measure part after part, and write each as soon as it is there."""
    plan = make_plan(args)
    make_folder(args.output)
    parts = earlier_results(args.output / "benchmark.json")
    options = words_of(dataclasses.replace(args, parts=(), output=Args.output))
    for name, (measure, title, baseline) in PARTS.items():
        if name in args.parts or (not args.parts and name != "vision"):
            command = shlex.join(["python", "-m", "camal_rl.benchmark", name, *options])
            parts[name] = {"command": command, "machine": machine(plan.base), "cases": measure(plan)}
            write(args.output, parts)
            print(markdown(tabulate(title, parts[name]["cases"], baseline)), flush=True)
    print(f"Results: {args.output / 'benchmark.md'}")


if __name__ == "__main__":
    sys.exit(run_at_once(lambda: run(ARGS), f"Finished parts are in {ARGS.output}."))
