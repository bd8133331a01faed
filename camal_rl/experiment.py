"""Environments x methods x seeds -> trained and evaluated runs, on this machine or on a Ray cluster.

A run is trained by `camal_rl.ppo` and evaluated by `camal_rl.evaluate`, in processes of their own. What is
there already is not done again, so the same command goes on after any interruption.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.game.definition import load_definition
from camal_rl.run import cluster
from camal_rl.run.command_line import (
    NAME,
    Count,
    Method,
    Number,
    Positive,
    option,
    parse,
    run_to_checkpoint,
    split_arguments,
    without_tilde,
    words,
)
from camal_rl.run.files import make_folder, write_whole
from camal_rl.run.runner import Cell, Runner, bearable_jobs, describe, is_done, learned, run_here
from camal_rl.run.toml import Table, read_toml


@dataclass
class Args:
    """Train and evaluate environments x methods x seeds. Started again, it does only what is missing.

    Options after -- go to every training; python -m camal_rl.ppo --help lists them.
    """

    # what is done
    envs: Annotated[tuple[str, ...], NAME] = ("Basic", "DefendLine", "DefendCenter", "TakeCover")
    """environments, or .toml files of your own"""
    methods: Annotated[tuple[Method, ...], NAME] = ("balanced", "vanilla")
    """balanced, camal, vanilla, suppress; the first is shown beside the others"""
    variants: Annotated[tuple[str, ...], option("NAME=OPTIONS")] = ()
    """more of them: a name and options of training, such as 'weak=--camal-coef 0.1'"""
    seeds: Positive = 5
    """runs of each environment and method: seeds 1 to N"""
    episodes: Positive = 100
    """evaluation episodes of each run"""
    faithfulness_frames: Count = 1000
    """frames on which pixels are removed in each evaluation, half its time; 0 for none"""
    runs_dir: Path = Path("runs")
    """parent of the run folders <env>/<name>/seed<k>"""
    matrix: Annotated[Path | None, option("TOML")] = None
    """a TOML file that says all of the above instead, and options of training and evaluation"""

    # machine
    jobs: Count = 0
    """runs at once, 0 for as many as cores and memory bear"""
    retries: Count = 1
    """times that a run that failed is started again"""
    ray: Annotated[str | None, option("ADDRESS")] = None
    """address of a Ray cluster to run on, or auto"""
    gpus: Number = 0.0
    """GPUs that each run asks of a Ray cluster, such as 0.25"""


def parse_args(arguments: Sequence[str] | None = None) -> tuple[Args, list[str]]:
    """Read the command line: own options, and those after `--`, which are for training."""
    own, train = split_arguments(arguments)
    return parse(Args, "python -m camal_rl.experiment", own), train


def _as_tuple(values: Any) -> Any:
    """A tuple for a list, as TOML has it."""
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"give a list, not {values!r}.")
    return tuple(values)


def _up_to(seeds: Any) -> Any:
    """The seeds 1 to N for a number N."""
    return tuple(range(1, seeds + 1)) if type(seeds) is int else seeds


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values, of which there have to be some, and none twice."""
    if not values:
        raise ValueError("name at least one.")
    if len(set(values)) < len(values):
        raise ValueError(f"{' '.join(map(str, values))} names one twice.")
    return values


def _as_options(table: Any) -> Any:
    """The options of a command line for a TOML table."""
    return words(table) if isinstance(table, Mapping) else table


LISTED = BeforeValidator(_as_tuple)
DISTINCT = AfterValidator(_distinct)
Options = Annotated[tuple[str, ...], LISTED, BeforeValidator(_as_options)]


def _split(variants: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Options by name for variants as the command line has them, NAME=OPTIONS."""
    table: dict[str, tuple[str, ...]] = {}
    for variant in variants:
        name, sign, options = variant.partition("=")
        if not (name and sign) or name in table:
            raise UserError(f"--variants {variant}: give each a name of its own, NAME=OPTIONS.")
        try:
            table[name] = tuple(shlex.split(options))
        except ValueError as error:
            raise UserError(f"--variants {variant}: {str(error).lower()}.") from error
    return table


def _named_anew(variants: dict[str, Options]) -> dict[str, Options]:
    """The same variants, none of which has a method's name."""
    if taken := [name for name in variants if name in get_args(Method)]:
        raise ValueError(f"{taken[0]} is a method: give the variant another name.")
    return variants


class Matrix(Table):
    """The runs to make: the content of a matrix file."""

    envs: Annotated[tuple[str, ...], LISTED, AfterValidator(without_tilde), DISTINCT] = Args.envs
    methods: Annotated[tuple[Method, ...], LISTED, DISTINCT] = Args.methods
    variants: Annotated[dict[str, Options], AfterValidator(_named_anew)] = Field({})
    """options of camal_rl.ppo by name of a variant"""
    seeds: Annotated[tuple[int, ...], LISTED, BeforeValidator(_up_to), DISTINCT] = _up_to(Args.seeds)
    runs_dir: Annotated[Path, Field(strict=False), AfterValidator(without_tilde)] = Args.runs_dir
    train: Options = ()
    """options of camal_rl.ppo, the same for all runs"""
    evaluate: Options = ()
    """options of camal_rl.evaluate"""

    def rows(self) -> dict[str, tuple[str, ...]]:
        """Options of training by name: of the methods, then of the variants."""
        named = {name: ("--name", name, *options) for name, options in self.variants.items()}
        return {method: ("--method", method) for method in self.methods} | named


def read_matrix(args: Args, train: Sequence[str]) -> Matrix:
    """The matrix of a command line, or of the TOML file it names.

    Raises:
        UserError: the file can't be read or is no matrix, or something is named twice.
    """
    if args.matrix is None:
        frames = str(args.faithfulness_frames)
        evaluation = ("--episodes", str(args.episodes), "--faithfulness-frames", frames)
        try:
            return Matrix(
                envs=args.envs,
                methods=args.methods,
                variants=_split(args.variants),
                seeds=_up_to(args.seeds),
                runs_dir=args.runs_dir,
                train=tuple(train),
                evaluate=evaluation,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"--{first['loc'][0]}: {first['ctx']['error']}") from error
    named = ("envs", "methods", "variants", "seeds", "episodes", "faithfulness_frames", "runs_dir")
    changed = [name for name in named if getattr(args, name) != getattr(Args, name)]
    if train or changed:
        raise UserError(
            f"{args.matrix} says what is done: leave out {', '.join(changed) or 'what follows --'}."
        )
    return read_toml(args.matrix, Matrix)


SET_HERE = {
    "train": ("env", "method", "name", "seed", "runs-dir"),
    "a variant": ("env", "name", "seed", "runs-dir"),
    "evaluate": ("run", "env", "compare", "output"),
}
"""Options of training and evaluation that the matrix sets."""


def cells(matrix: Matrix) -> list[Cell]:
    """All runs of a matrix, a seed of everything before the next seed.

    Raises:
        UserError: a run that can't be trained or evaluated so, or two runs in one folder.
        SystemExit: code 2, an option that `camal_rl.ppo` or `camal_rl.evaluate` does not understand.
    """
    from camal_rl import evaluate, ppo  # with torch, which --help need not wait for
    from camal_rl.run.device import choose_device, choose_precision
    from camal_rl.run.folder import RunFolder, check_args_file

    of_variants = tuple(itertools.chain(*matrix.variants.values()))
    given = {"train": matrix.train, "a variant": of_variants, "evaluate": matrix.evaluate}
    for kind, names in SET_HERE.items():
        options = {word.replace("_", "-").split("=")[0] for word in given[kind]}
        for name in names:
            if f"--{name}" in options:
                raise UserError(f"--{name} can't be one of the options of {kind}: the matrix sets it.")
    planned: dict[Path, Cell] = {}
    for seed, env, own in itertools.product(matrix.seeds, matrix.envs, matrix.rows().values()):
        train = ("--env", env, "--seed", str(seed), "--torch-threads", "1", *matrix.train, *own)
        args = ppo.parse_args([*train, "--runs-dir", str(matrix.runs_dir)])
        device = choose_device(args.device)
        chosen = {"precision": choose_precision(args.precision, device), "device_type": device.type}
        run = RunFolder(args, load_definition(args.env), chosen)
        if run.path in planned:
            raise UserError(
                f"--envs: {env} and another one are both called {run.path.parts[-3]}, and so would share the "
                f"folder {run.path}. Name it once, or rename a file."
            )
        evaluation = ("--torch-threads", "1", "--video-episodes", "0", *matrix.evaluate)
        settings = evaluate.wanted_settings(evaluate.parse_args([str(run.path), *evaluation]))
        settings["attention"] = settings["attention"] or args.attention
        steps = run.total * args.batch_size
        planned[run.path] = cell = Cell(run.path, train, evaluation, steps, learned(run.described), settings)
        if not is_done(cell) and check_args_file(run.path, run.described):
            print(f"{run.path} goes on for more steps than before; its log says what that means.")
    return list(planned.values())


class Comparison(NamedTuple):
    """The first row shown beside another one, by an evaluation of it with pictures and a video."""

    cell: Cell
    """the first row's run, with the options of that evaluation, which gives the same scores"""
    other: Cell
    picture: Path

    def can_be_made(self) -> bool:
        """Return whether both runs are as they are to be."""
        return is_done(self.cell) and is_done(self.other)


def comparisons(matrix: Matrix, planned: Sequence[Cell], other_row: str) -> list[Comparison]:
    """The first row beside another one, on the first seed of every environment."""
    by_folder = {cell.folder: cell for cell in planned}
    name = f"seed{matrix.seeds[0]}"
    shown = []
    for cell in planned:
        if cell.folder.parts[-2:] == (next(iter(matrix.rows())), name):
            other = by_folder[cell.folder.parents[1] / other_row / name]
            defaults = ("--torch-threads", "1", "--video-episodes", "1")
            options = (*defaults, *matrix.evaluate, "--compare", str(other.folder))
            picture = cell.folder / "media" / f"evaluation-versus-{other_row}-seed-{matrix.seeds[0]}.png"
            shown.append(Comparison(cell._replace(train=(), evaluate=options), other, picture))
    return shown


def run(
    matrix: Matrix,
    jobs: int = 0,
    retries: int = 1,
    interrupted: Callable[[], bool] = lambda: False,
    ray: str | None = None,
    gpus: float = 0,
) -> int:
    """Do what is missing of a matrix, until `interrupted()`; the exit code: 0, or 1 if a run failed."""
    from camal_rl.run.device import gpu_memory  # with torch, as `cells`
    from camal_rl.run.folder import by_other_code

    planned = cells(matrix)
    missing = [cell for cell in planned if not is_done(cell)]
    _write_matrix(matrix)
    others = list(matrix.rows())[1:]
    count = f"{len(others) + 1} {'methods and variants' if matrix.variants else 'methods'}"
    sizes = f"{len(matrix.envs)} environments x {count} x {len(matrix.seeds)} seeds"
    print(
        f"camal_rl {__version__}: {len(planned)} runs ({sizes}), {len(planned) - len(missing)} done\n"
        f"Run folders: {matrix.runs_dir}\n"
        f"TensorBoard: tensorboard --logdir {matrix.runs_dir}",
        flush=True,
    )
    older = [cell.title for cell in planned if cell not in missing and by_other_code(cell.folder)]
    if older:
        print(
            f"Done, but by other code of the package than this: {', '.join(older)}. To train with this code, "
            "give another --runs-dir, or variants of other names."
        )
    beside = {row: comparisons(matrix, planned, row) for row in others}
    for comparison in itertools.chain(*beside.values()):
        if not comparison.can_be_made():  # a picture shows what is there no longer
            comparison.picture.unlink(missing_ok=True)
            comparison.picture.with_suffix(".mp4").unlink(missing_ok=True)
    runner = Runner(retries, interrupted)
    jobs_here = jobs or bearable_jobs(gpu_memory())
    outcomes = []
    if missing and ray is not None:
        outcomes += cluster.run_on_ray(missing, len(planned), runner, ray, gpus, jobs)
    elif missing:
        outcomes += run_here(missing, len(planned), jobs_here, runner)
    for row, pairs in beside.items():  # in turn, because the evaluations of one run share its folder
        pending = [pair.cell for pair in pairs if pair.can_be_made() and not pair.picture.exists()]
        if pending and not interrupted():
            print(f"Pictures and videos beside {row}:", flush=True)
            outcomes += run_here(pending, len(pending), jobs_here, runner)
    if interrupted():
        return 0
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(describe(outcome), file=sys.stderr)
    done = sum(map(is_done, planned))
    print(f"{done} of {len(planned)} runs are done. Report: python -m camal_rl.report {matrix.runs_dir}")
    return 1 if failed else 0


def _write_matrix(matrix: Matrix) -> None:
    """Leave on record what was to be done, so that a report can say what is missing."""
    make_folder(matrix.runs_dir, "--runs-dir")
    # Not runs_dir: it is where the file lies, wherever that is moved to.
    content = {"version": __version__, **matrix.model_dump(exclude={"runs_dir"})}
    write_whole(matrix.runs_dir / "experiment.json", (json.dumps(content, indent=1) + "\n").encode())


def main(args: Args, train: Sequence[str]) -> int:
    """Run the matrix; the exit code: 0, 1 if a run failed, 2 after a mistake, 130 or 143 if stopped."""
    codes = []

    def do(interrupted: Callable[[], bool]) -> None:
        if args.gpus and args.ray is None:
            raise UserError("--gpus is what a run asks of a Ray cluster: give --ray too, or leave it out.")
        matrix = read_matrix(args, train)
        codes.append(run(matrix, args.jobs, args.retries, interrupted, args.ray, args.gpus))

    return run_to_checkpoint(do, "iteration of every run", "--jobs") or codes[0]


if __name__ == "__main__":
    sys.exit(main(*parse_args()))
