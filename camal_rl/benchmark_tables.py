"""What the benchmark measured -> figures against its goals, tables in Markdown, and drawings.

Ratios are formed within a repetition, where both sides met the same machine, and shown as their median with
the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from camal_rl.results import figures as page

Result = Mapping[str, Any]


class Spread(NamedTuple):
    """Repetitions of one number: median, lowest, highest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


class Finding(NamedTuple):
    """A number that has a goal."""

    name: str
    value: Spread
    goal: float
    at_most: bool
    unit: str
    """`%`, `x` or `s`."""

    @property
    def met(self) -> bool:
        """Whether the median is within the goal."""
        return self.value.median <= self.goal if self.at_most else self.value.median >= self.goal


def within(seconds: Mapping[str, float], phase: str) -> float:
    """Seconds of a phase and all inside it, from a clock's seconds by path."""
    return sum(value for path, value in seconds.items() if path.split("/")[0] == phase)


def rate(stamps: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """SPS of a training in a process of its own, without what the stamps themselves took."""
    seconds = sum(later["ended"] - earlier["resumed"] for earlier, later in pairwise(stamps))
    return batch_size * (len(stamps) - 1) / seconds


def cpu_a_step(stamps: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """CPU seconds that an agent step takes of the trainer and its engines."""
    return (stamps[-1]["cpu"] - stamps[0]["cpu"]) / (batch_size * (len(stamps) - 1))


# ------------------------------------------------------------------------------------------------------------
# Each part


class Account(NamedTuple):
    """What one part comes to."""

    findings: list[Finding]
    tables: list[page.Table]
    drawings: dict[str, bytes]
    """By file name."""


PHASES = {
    "end to end": None,
    "rollout": "rollout",
    "advantages": "gae",
    "update": "update",
    "the rest (TensorBoard)": "",
}
"""Rows of a comparison of methods, and the phase of each; None for all of them."""


def overhead(result: Result, machine: Result) -> Account:
    """Goal 1: the price of CAMAL."""
    methods = ("camal", "vanilla")
    costs, rows = {}, []
    for name, phase in PHASES.items():
        seconds = {
            method: [
                statistics.median(
                    sum(one.values()) if phase is None else within(one, phase) for one in repetition[method]
                )
                for repetition in result["seconds"]
            ]
            for method in methods
        }
        paired = list(zip(seconds["camal"], seconds["vanilla"], strict=True))
        costs[name] = spread([100 * (camal / vanilla - 1) for camal, vanilla in paired])
        rows.append([name, *(_milliseconds(seconds[method]) for method in methods), _percent(costs[name])])
        if phase is None:
            sps = {method: [result["batch_size"] / one for one in seconds[method]] for method in methods}
    share = spread([100 * (1 - a / b) for a, b in zip(sps["camal"], sps["vanilla"], strict=True)])
    rows.append(["SPS", *(_whole(spread(sps[method])) for method in methods), _percent(_negative(share))])
    return Account(
        [
            Finding("CAMAL's cost, share of Vanilla's SPS", share, 3, True, "%"),
            Finding("CAMAL's cost, share of Vanilla's update", costs["update"], 8, True, "%"),
        ],
        [
            page.Table(
                "What CAMAL costs",
                ["milliseconds an iteration", "CAMAL", "Vanilla", "difference"],
                rows,
                f"Iterations of {result['batch_size']:,} agent steps, of the one and the other in turns, and "
                f"of each repetition's {len(result['seconds'][0]['camal'])} the median. An iteration is all "
                "that training does but for measuring attention, which takes both the same. The learning "
                "rate is 0, so that both play the same games.",
            )
        ],
        {},
    )


SIDES = {"rollout": "rollouts", "games": "games without the network", "raw": "raw engine"}


def rollout(result: Result, machine: Result) -> Account:
    """Goal 3: rollouts beside the raw engine."""
    findings, rows = [], []
    for one in result["resolutions"]:
        rates = {
            side: [
                one["batch_size"] * len(repetition[side]) / sum(repetition[side])
                for repetition in one["seconds"]
            ]
            for side in SIDES
        }
        resolution = one["render_resolution"]
        ratios = {
            side: spread([100 * a / b for a, b in zip(rates[side], rates["raw"], strict=True)])
            for side in ("rollout", "games")
        }
        share = 100 * one["projection_seconds"] / one["rollout_cpu_seconds"]
        findings += [
            *(
                Finding(f"{SIDES[side]}, share of the raw engine's rate, {resolution}", ratio, 85, False, "%")
                for side, ratio in ratios.items()
            ),
            Finding(
                f"masks' projection, share of a rollout's CPU time, {resolution}",
                spread([share]),
                3,
                True,
                "%",
            ),
        ]
        rows.append(
            [
                resolution,
                *(_whole(spread(rates[side])) for side in SIDES),
                *map(_percent, ratios.values()),
                f"{share:.1f} %",
            ]
        )
    table = page.Table(
        "Rollouts and the raw engine",
        [
            "rendered",
            *(f"{name}, SPS" for name in SIDES.values()),
            "rollouts' share",
            "games' share",
            "projection",
        ],
        rows,
        f"{result['resolutions'][0]['num_envs']} games with labels. Raw: a thread for each game acts at "
        "random (make_action), and takes frame and labels (get_state). Games: frames shrunk and stacked, "
        "masks made and projected as well. Rollouts: the network decides. Projection: share of the CPU time "
        "that the trainer and its engines spend in rollouts.",
    )
    return Account(findings, [table], {})


def runs(result: Result, machine: Result) -> Account:
    """Goal 4: several runs at once."""
    together: dict[tuple[int, int], list[float]] = {}
    efforts = []
    for one in result["measured"]:
        total = sum(rate(stamps, result["batch_size"]) for stamps in one["stamps"])
        together.setdefault((one["runs"], one["torch_threads"]), []).append(total)
        if one["torch_threads"] == 1 and one["runs"] == 1:
            efforts.append(cpu_a_step(one["stamps"][0], result["batch_size"]))
    bound = machine["cores"] / statistics.median(efforts)
    best = max(together, key=lambda split: statistics.median(together[split]))
    shares = spread([100 * total / bound for total in together[best]])
    rows = [
        [
            str(count),
            str(threads),
            _whole(spread(totals)),
            _percent(spread([100 * t / bound for t in totals])),
        ]
        for (count, threads), totals in sorted(together.items())
    ]
    return Account(
        [
            Finding(
                f"{best[0]} runs at once, {best[1]} torch threads each: share of what the cores give",
                shares,
                90,
                False,
                "%",
            )
        ],
        [
            page.Table(
                "Several runs at once",
                ["runs", "torch threads", "SPS together", "of what the cores give"],
                rows,
                f"What {machine['cores']} cores give: {bound:.0f} SPS, if they did nothing but the work that "
                "a single run with one torch thread does for a step, measured as CPU time.",
                labels=2,
            )
        ],
        {},
    )


WAYS = {"per sample": "one backward pass a sample", "batch": "one for the batch (Eq. 4)"} | {
    "closed form": "closed form"
}


def extraction(result: Result, machine: Result) -> Account:
    """Goal 5: the paper's Figure 2."""
    sizes = [str(size) for size in result["batch_sizes"]]
    costs = {
        way: [
            spread(
                [
                    100 * (with_it / without - 1)
                    for with_it, without in zip(
                        result["seconds"][way][size], result["seconds"]["none"][size], strict=True
                    )
                ]
            )
            for size in sizes
        ]
        for way in WAYS
    }
    rows = [[size, *(_percent(costs[way][place]) for way in WAYS)] for place, size in enumerate(sizes)]
    note = (
        "Added time: that of forward pass, extraction, loss and backward pass, over that of forward and "
        "backward pass without attention, less 100 %. fp32."
    )

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (way, label) in enumerate(WAYS.items()):
            # A logarithm has no room for what noise put below zero.
            medians, low, high = (
                [max(one[column], 0.1) for one in costs[way]] for column in range(len(Spread._fields))
            )
            places = list(map(int, sizes))
            axes.plot(places, medians, page.DASHES[place], color=page.colour(place), marker="o", label=label)
            axes.fill_between(places, low, high, color=page.colour(place), alpha=0.2, linewidth=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        _sizes(axes, list(map(int, sizes)))
        axes.set_xlabel("batch size")
        axes.set_ylabel("added time")
        axes.legend(loc="upper left")

    titles = ["batch size", *WAYS.values()]
    tables = [page.Table("Cost of extracting attention (the paper's Figure 2)", titles, rows, note)]
    return Account([], tables, page.draw("extraction", 3.0, paint))


def scaling(result: Result, machine: Result) -> Account:
    """Goal 6: speed and memory against sizes and length."""
    rows = []
    series: dict[str, list[tuple[Any, Spread, Spread]]] = {}
    groups: dict[tuple[str, str], list[Result]] = {}
    for one in result["measured"]:
        groups.setdefault((one["varied"], json.dumps(one[one["varied"]])), []).append(one)
    for (varied, value), members in groups.items():
        one = members[0]
        sps = spread([rate(member["stamps"], member["batch_size"]) for member in members])
        memory = {
            kind: spread([member["stamps"][-1].get(kind, 0) / 2**20 for member in members])
            for kind in ("peak", "pss")
        }
        height, width = one["frame_size"]
        rows.append(
            [
                str(one["num_envs"]),
                f"{height}x{width}",
                one["render_resolution"],
                *map(_whole, (sps, memory["peak"], memory["pss"])),
            ]
        )
        series.setdefault(varied, []).append((json.loads(value), sps, memory["peak"]))
    lengths = [length for length in result["lengths"] if length <= _length(result)]
    stamps = {length: _stamp_after(result, length) for length in lengths}
    grown = spread([100 * (_mebibytes(stamps[lengths[-1]]) / _mebibytes(stamps[lengths[0]]) - 1)])
    memory_rows = [
        [str(length), f"{_mebibytes(stamp):.0f}", f"{stamp.get('peak', 0) / 2**20:.0f}"]
        for length, stamp in stamps.items()
    ]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, len(series), sharey="row", squeeze=False)
        for column, (varied, points) in enumerate(series.items()):
            for row, label in enumerate(("SPS", "peak memory, MiB")):
                axes = panels[row][column]
                values = [point[1 + row] for point in points]
                positions = (
                    [point[0] for point in points] if varied == "num_envs" else list(range(len(points)))
                )
                medians = [one.median for one in values]
                axes.plot(positions, medians, color=page.colour(row), marker="o")
                low, high = [one.low for one in values], [one.high for one in values]
                axes.fill_between(positions, low, high, color=page.colour(row), alpha=0.2, linewidth=0)
                if varied == "num_envs":
                    _sizes(axes, positions)
                else:
                    names = [_short(point[0]) for point in points]
                    axes.set_xticks(positions, names, rotation=90)
                if column == 0:
                    axes.set_ylabel(label)
                if row == 1:
                    axes.set_xlabel(varied.replace("_", " "))
        for first, *_ in panels:  # the others of its row share its axis, and all have been drawn
            first.set_ylim(bottom=0)

    native = _where_time_goes(result["native_frames"], "Where the time goes with frames of 240x320")
    return Account(
        [
            Finding(
                f"memory after {lengths[-1]} iterations over that after {lengths[0]}, less 100 %",
                grown,
                2,
                True,
                "%",
            )
        ],
        [
            page.Table(
                "Speed and memory against sizes",
                ["games", "frame", "rendered", "SPS", "peak RSS, MiB", "PSS, MiB"],
                rows,
                "Memory of the trainer and its engines. Peak RSS adds each process's own highest; PSS, at "
                "the end, counts once what they share.",
                labels=3,
            ),
            page.Table(
                "Memory against a run's length",
                ["iterations", "PSS, MiB", "peak RSS, MiB"],
                memory_rows,
                f"One run, with a checkpoint and a picture in each iteration of "
                f"{result['long_run_batch_size']:,} agent steps.",
            ),
            native,
        ],
        page.draw("scaling", 4.4, paint),
    )


def _length(result: Result) -> int:
    """Iterations of the long run."""
    return int(result["long_run_first"]) + len(result["long_run"]) - 1


def _stamp_after(result: Result, iterations: int) -> Mapping[str, float]:
    stamp: Mapping[str, float] = result["long_run"][iterations - result["long_run_first"]]
    return stamp


def _mebibytes(stamp: Mapping[str, float]) -> float:
    return stamp.get("pss", stamp.get("rss", 0)) / 2**20


def startup(result: Result, machine: Result) -> Account:
    """Goal 7: from the command to the first step."""
    titles = {
        "help": "--help",
        "inference": "first frames reach the network",
        "gradient_step": "first gradient step",
        "one_iteration": "one iteration, and the process has ended",
    }
    spreads = {name: spread([one[name] for one in result["seconds"]]) for name in titles}
    return Account(
        [
            Finding("start to the first inference", spreads["inference"], 5, True, "s"),
            Finding("start to the first gradient step", spreads["gradient_step"], 5, True, "s"),
            Finding("--help", spreads["help"], 1, True, "s"),
        ],
        [
            page.Table(
                "Starting",
                ["python -m camal_rl.ppo", "seconds"],
                [[titles[name], _shown(one, 2)] for name, one in spreads.items()],
                f"In a new process each time. A whole rollout of {result['batch_size']:,} agent steps lies "
                "between the first inference and the first gradient step.",
            )
        ],
        {},
    )


SHARES = {
    "rollout: games (act, wait for frames and labels, masks)": ("rollout/environments",),
    "rollout: inference": ("rollout/forward",),
    "rollout: bookkeeping, waiting for other threads": ("rollout",),
    "advantages (GAE)": ("gae",),
    "update: forward": ("update/forward",),
    "update: attention": ("update/attention",),
    "update: losses and their gradients": ("update/losses",),
    "update: backward": ("update/backward",),
    "update: weights to the network's precision, gradients back": ("update/weights",),
    "update: gradient clipping": ("update/clip",),
    "update: optimiser": ("update/optimizer",),
    "update: choosing samples, waiting for other threads": ("update",),
    "measurement of attention": ("measure",),
    "the rest (value of the last frame, TensorBoard)": ("",),
}
"""Rows of where the time goes; each path belongs to the row that names the longest beginning of it."""


def profile(result: Result, machine: Result) -> Account:
    """Where the time of an iteration goes."""
    return Account([], [_where_time_goes(result, "Where the time goes")], {})


def _where_time_goes(result: Result, title: str) -> page.Table:
    iterations = [shares(one) for one in result["seconds"]]
    medians = {row: statistics.median(one[row] for one in iterations) for row in SHARES}
    total = sum(medians.values())
    whole = statistics.median(sum(one.values()) for one in result["seconds"])
    return page.Table(
        title,
        ["part", "share", "ms an iteration"],
        [[row, f"{100 * value / total:.1f} %", f"{1000 * value:.0f}"] for row, value in medians.items()],
        f"Of the first thread; the others do the same with other games and samples. Medians over "
        f"{len(iterations)} iterations of {result['batch_size']:,} agent steps; an iteration takes "
        f"{1000 * whole:.0f} ms. Attention is measured in each of them, by default in every fourth.",
    )


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """A clock's seconds by row of `SHARES`."""
    rows = {path: row for row, paths in SHARES.items() for path in paths}
    totals = dict.fromkeys(SHARES, 0.0)
    for path, value in seconds.items():
        parts = path.split("/")
        known = next(
            beginning
            for length in range(len(parts), -1, -1)
            if (beginning := "/".join(parts[:length])) in rows
        )
        totals[rows[known]] += value
    return totals


def peers(result: Result, machine: Result) -> Account:
    """Goal 2: other libraries on the same work."""
    findings, rows = [], []
    goals = {"160x120": 2.5, "320x240": 2.0}
    speeds: dict[str, dict[str, dict[int, list[float]]]] = {}
    for one in result["measured"]:
        sps = one["sps"] if "sps" in one else rate(one["stamps"][0], one["batch_size"])
        by_name = speeds.setdefault(one["render_resolution"], {})
        by_name.setdefault(one["name"], {}).setdefault(one["torch_threads"], []).append(sps)
    for resolution, by_name in speeds.items():
        best = {
            name: max(by_threads.items(), key=lambda item: statistics.median(item[1]))
            for name, by_threads in by_name.items()
        }
        others = [name for name in best if name != OURS]
        fastest = max(others, key=lambda name: statistics.median(best[name][1]))
        ratio = spread([a / b for a, b in zip(best[OURS][1], best[fastest][1], strict=True)])
        findings.append(
            Finding(f"CAMAL's SPS over {fastest}'s, {resolution}", ratio, goals[resolution], False, "x")
        )
        for name, (threads, values) in best.items():
            others_ratio = [a / b for a, b in zip(best[OURS][1], values, strict=True)]
            rows.append(
                [
                    resolution,
                    name,
                    str(threads),
                    _whole(spread(values)),
                    page.NOTHING if name == OURS else _shown(spread(others_ratio), 2),
                ]
            )
    versions = {
        one["name"]: f"{one['name']} {one['versions'][one['name']]} (torch {one['versions']['torch']})"
        for one in result["measured"]
        if "versions" in one
    }
    return Account(
        findings,
        [
            page.Table(
                "Other libraries",
                ["rendered", "trainer", "torch threads", "SPS", "camal_rl over it"],
                rows,
                "camal_rl with CAMAL and masks, the others with neither, on the same work, in turns; each "
                f"with one or two torch threads, what is faster. {'; '.join(versions.values())}.",
                labels=3,
            )
        ],
        {},
    )


OURS = "camal_rl"

TABLE_6 = {
    "resnet18": (1.0, 5.0, 0.2),
    "convnext_t": (51.2, 65.0, 65.0),
    "efficientnet_b0": (29.8, 72.6, 69.0),
    "vit_b_16": (55.2, 63.1, 62.7),
    "swin_v2_t": (52.2, 64.2, 64.0),
    "maxvit_t": (60.5, 69.2, 68.9),
}
"""Training overhead in percent that the paper reports for its three data sets."""


def vision(result: Result, machine: Result) -> Account:
    """What CAMAL adds to a training step of each classifier."""
    findings, rows = [], []
    for model, seconds in result["seconds"].items():
        pairs = list(zip(seconds["camal"], seconds["vanilla"], strict=True))
        cost = spread([100 * (with_it / without - 1) for with_it, without in pairs])
        reported = statistics.mean(TABLE_6[model])
        findings.append(Finding(f"CAMAL's overhead, {model}", cost, round(reported, 1), True, "%"))
        times = (_milliseconds(seconds[method]) for method in ("camal", "vanilla"))
        rows.append([model, *times, _percent(cost), " / ".join(f"{one:.1f}" for one in TABLE_6[model])])
    return Account(
        findings,
        [
            page.Table(
                "Overhead of attention supervision (the paper's Table 6)",
                [
                    "model",
                    "CAMAL, ms a step",
                    "Vanilla, ms a step",
                    "overhead",
                    "paper: BUSI / Pet / Flower, %",
                ],
                rows,
                f"A training step on {result['batch_size']} random images of 224x224, with each method in "
                "turns. The paper's figures are its own code's; the goal is the mean of its three.",
            )
        ],
        {},
    )


ACCOUNTS: dict[str, Callable[[Result, Result], Account]] = {
    "overhead": overhead,
    "peers": peers,
    "rollout": rollout,
    "runs": runs,
    "extraction": extraction,
    "scaling": scaling,
    "startup": startup,
    "profile": profile,
    "vision": vision,
}
"""By part, in the order of the goals."""


# ------------------------------------------------------------------------------------------------------------
# The files


def documents(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Files of a benchmark's results, by name: `benchmark.md` and the drawings.

    Args:
        parts: for each part that was measured its `machine`, `command` and `result`.
    """
    files: dict[str, bytes] = {}
    goals: list[list[str]] = []
    sections: list[str] = []
    for part, account in ((part, ACCOUNTS[part]) for part in ACCOUNTS if part in parts):
        made = account(parts[part]["result"], parts[part]["machine"])
        files |= made.drawings
        goals += [goal(finding) for finding in made.findings]
        sections += map(page.markdown, made.tables)
        sections += [f"![{name}]({name})\n" for name in made.drawings if name.endswith(".png")]
        sections.append(f"{describe(parts[part]['machine'])}\n\n```bash\n{parts[part]['command']}\n```\n")
    columns = ["goal", "median (lowest to highest)", "is to be", "met"]
    table = page.Table("Goals", columns, goals, "Ratios are formed within each repetition.")
    text = "\n".join([*([page.markdown(table)] if goals else []), *sections])
    return {"benchmark.md": text.encode(), **files}


def describe(machine: Result) -> str:
    """One line on what it was measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gpu}; {machine['precision']} on {machine['device']}, "
        f"{machine['torch_threads']} torch threads; Python {machine['python']}, {versions}."
    )


def goal(finding: Finding) -> list[str]:
    """A finding in words: its name, its value, what it is to be, and whether it is."""
    digits = {"%": 1, "x": 2, "s": 2}[finding.unit]
    unit = {"%": " %", "x": " times", "s": " s"}[finding.unit]
    wanted = f"at {'most' if finding.at_most else 'least'} {finding.goal:g}{unit}"
    return [finding.name, _shown(finding.value, digits, unit), wanted, "yes" if finding.met else "no"]


def _shown(value: Spread, digits: int, unit: str = "") -> str:
    median, low, high = (page.fixed(one, digits) for one in value)
    return f"{median}{unit} ({low} to {high})"


def _percent(value: Spread) -> str:
    return _shown(value, 1, " %")


def _whole(value: Spread) -> str:
    return _shown(value, 0)


def _milliseconds(seconds: Sequence[float]) -> str:
    return _shown(spread([1000 * one for one in seconds]), 0)


def _negative(value: Spread) -> Spread:
    return Spread(-value.median, -value.high, -value.low)


def _sizes(axes: Axes, values: Sequence[int]) -> None:
    """An axis of powers of two."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
