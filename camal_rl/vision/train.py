"""Train a classifier with attention supervision: cross-entropy plus the CAMAL loss (Eq. 2), fold by fold.

Hyperparameters are those of Table 7. Reads from top to bottom: arguments, batch, loss and update, one fold,
the run. Started by torchrun, several processes share each batch, and the loss is that of the whole batch.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch's import

import contextlib
import dataclasses
import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.vision import need_torchvision

T = TypeVar("T")
Count = Annotated[int, tyro.conf.arg(metavar="N")]
Number = Annotated[float, tyro.conf.arg(metavar="X")]


@dataclass
class Run:
    model: Annotated[
        Literal["resnet18", "convnext_t", "efficientnet_b0", "vit_b_16", "swin_v2_t", "maxvit_t"],
        tyro.conf.arg(metavar="NAME"),
    ] = "resnet18"
    """resnet18, convnext_t, efficientnet_b0, vit_b_16, swin_v2_t, maxvit_t"""
    data: Annotated[Literal["shapes", "busi", "pet", "flower"], tyro.conf.arg(metavar="NAME")] = "shapes"
    """shapes (generated), busi, pet, flower (in --data-dir)"""
    method: Annotated[Literal["camal", "vanilla", "prior", "suppress"], tyro.conf.arg(metavar="NAME")] = (
        "camal"
    )
    """camal (Eq. 2), vanilla, prior (regions of --prior for masks), suppress (beta)"""
    folds: Count = 10
    """of cross-validation, the same for every method"""
    fold: Count = 0
    """only this one, 1 to --folds; 0 for all"""
    seed: Count = 1
    """of folds, weights and batches"""
    samples: Count = 1200
    """of shapes"""
    runs_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/vision")
    """holds <data>/<model>/<method>/fold<k>, the run's folders"""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data")
    """holds the data sets as they are published"""


@dataclass
class Training:
    epochs: Count = 500
    """passes over the training set (Table 7)"""
    learning_rate: Number = 0.0
    """of AdamW; 0: 1e-3, or 1e-4 for ViT, Swin and MaxViT (Table 7)"""
    weight_decay: Number = 0.01
    """of AdamW (Table 7)"""
    batch_size: Count = 32
    """of all processes together (Table 7)"""
    weights: Annotated[str, tyro.conf.arg(metavar="FROM")] = "imagenet"
    """to start from: imagenet, none (random), or a file"""
    image_size: Count = 224
    """pixels along a side"""
    freeze_batch_norm: bool = False
    """use BatchNorm's running statistics: no sample sees another"""


@dataclass
class Attention:
    camal_coef: Number = 1.0
    """lambda of Eq. 2 (Table 7)"""
    attention: Annotated[
        Literal["gradcam", "layercam", "hirescam", "diffgradcam"], tyro.conf.arg(metavar="NAME")
    ] = "gradcam"
    """gradcam (Eq. 3), layercam, hirescam, diffgradcam"""
    empty_mask: Annotated[Literal["ignore", "suppress"], tyro.conf.arg(metavar="HOW")] = "ignore"
    """images without a target: ignore, suppress (beta)"""
    prior: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """soft maps in place of masks: a file of camal_rl.vision.priors, or a folder of PNG files"""


@dataclass
class Machine:
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps; with torchrun a GPU for each process"""
    precision: Annotated[Literal["auto", "fp32", "tf32", "bf16"], tyro.conf.arg(metavar="NAME")] = "auto"
    """fp32, tf32 (CUDA), bf16, auto: bf16 where it is fast"""
    torch_threads: Count = 0
    """CPU threads, 0 for all cores"""
    checkpoint_every: Count = 10
    """epochs"""
    test_every: Count = 10
    """epochs between measurements on the test set, 0 for none before the end"""


@dataclass
class Args:
    """Train a classifier with CAMAL, fold by fold. The same command again goes on where it stopped."""

    run: Run = field(default_factory=Run)
    training: Training = field(default_factory=Training)
    attention: Attention = field(default_factory=Attention)
    machine: Machine = field(default_factory=Machine)


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(Args, prog="python -m camal_rl.vision.train", config=config, args=arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once
    for _number in (signal.SIGINT, signal.SIGTERM):  # until `main` takes over
        signal.signal(_number, lambda number, _: os._exit(128 + number))
    need_torchvision()

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from camal_rl import attention, camal, metrics
from camal_rl.masks import mask_weights
from camal_rl.run import folder as run_folder
from camal_rl.run.command_line import run_to_checkpoint
from camal_rl.run.device import choose_device, choose_precision, keep_freed_memory
from camal_rl.run.machine import cores
from camal_rl.vision import datasets, evaluate
from camal_rl.vision.models import (
    ARCHITECTURES,
    Classifier,
    batch_norms,
    cam,
    freeze_batch_norm,
    load_weights,
    normalise,
)
from camal_rl.vision.samples import Samples

GRACE = 0.2
"""Seconds in which threads of a group of processes can finish before it ends."""
REGIONS_AT_ONCE = 64
"""Soft maps that are brought to the size of images at the same time."""

# ------------------------------------------------------------------------------------------------------------
# Processes that share the work


class Group(NamedTuple):
    """The processes that torchrun started, or this one alone."""

    rank: int = 0
    size: int = 1

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor without gradients."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true in any process."""
        return bool(self.total(torch.tensor(int(flag), device=device)))

    def part(self, index: Tensor) -> Tensor:
        """This process's share of a batch."""
        return index[self.rank :: self.size]

    def first_ones(self, find: Callable[[], T]) -> T:
        """What a function returns in the first process, the only one that calls it, or the mistake it raises.

        So processes agree also where each would find something else on its machine's disk.
        """
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = find()
            except UserError as mistake:
                found[1] = str(mistake)
        if self.size > 1:
            dist.broadcast_object_list(found)
        if found[1] is not None:
            raise UserError(found[1])
        value: T = found[0]
        return value


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's environment variables describe."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if "onnection" in str(error):  # closed or reset by the other side
            raise UserError("another process of this training has ended: see what it says.") from error
        raise
    finally:
        # The end of the group waits for its threads and holds the interpreter's lock, which one of them may
        # still need to free a tensor: for ever, as was seen with gloo in torch 2.7.
        time.sleep(GRACE)
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------------
# Batch, loss and update


class Batch(NamedTuple):
    """Samples to learn from: of a whole training set, of a batch, or one process's share of it."""

    images: Tensor  # uint8 (B, 3, S, S)
    labels: Tensor  # int64 (B,)
    costs: Tensor | None  # (B, h, w), what attention adds to the loss, where it is supervised
    counted: Tensor | None  # bool (B,), whether it does, where it is supervised

    def at(self, index: Tensor) -> Batch:
        """Some of them."""
        return Batch._make(one if one is None else one[index] for one in self)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch._make(
            one
            if one is None
            else (one.pin_memory() if device.type == "cuda" else one).to(device, non_blocking=True)
            for one in self
        )


def losses(model: nn.Module, batch: Batch, args: Args, group: Group, precision: str) -> dict[str, Tensor]:
    """The terms of Eq. 2 of a batch of which every process in the group has a part.

    Sums over this part divided by the numbers of the whole: the sum over processes is the batch's loss.

    Args:
        model: `Classifier`, or `DistributedDataParallel` of one.
        batch: this process's part.

    Returns:
        "cross_entropy"; "camal_loss" where attention is supervised; "accuracy" without a gradient.
    """
    numbers = torch.zeros(2, dtype=torch.int64, device=batch.labels.device)
    numbers[0] = len(batch.labels)
    if batch.counted is not None:
        numbers[1] = batch.counted.sum()
    samples, counted = group.total(numbers)
    images = normalise(batch.images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = model(images)
    terms = {"cross_entropy": F.cross_entropy(output.logits, batch.labels, reduction="sum") / samples}
    if batch.costs is not None:
        attended = cam(output, batch.labels, args.attention.attention)
        terms["camal_loss"] = camal.mean_cost(attention.normalize(attended), batch.costs, counted)
    with torch.no_grad():
        terms["accuracy"] = (output.logits.argmax(dim=1) == batch.labels).sum() / samples
    return terms


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, args: Args, group: Group, precision: str
) -> Tensor:
    """One step on a batch: what `losses` returns, of the whole batch, stacked and without gradients."""
    terms = losses(model, batch, args, group, precision)
    loss = terms["cross_entropy"]
    if "camal_loss" in terms:
        loss = loss + args.attention.camal_coef * terms["camal_loss"]
    optimizer.zero_grad(set_to_none=True)
    # DistributedDataParallel takes the mean of the processes' gradients, and the loss is their sum.
    torch.autograd.backward(loss * group.size)
    optimizer.step()
    return group.total(torch.stack(list(terms.values())).detach())


def supervision(
    args: Args, masks: np.ndarray, image_size: int, map_size: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """`Batch.costs` and `Batch.counted` of all samples.

    Args:
        args: of the training.
        masks: of the samples, uint8 {0, 1} (N, S, S), or a prior's soft maps, float32 [0, 1] (N, h, w).
        image_size: S. Maps are brought to it, as attention is by Eq. 3, before they are projected: a cell of
            attention's between the pixels of a coarser map would not be supervised.
        map_size: of attention.
    """
    if args.run.method == "vanilla":
        return None, None
    size = (image_size, image_size)
    weights = torch.from_numpy(
        np.concatenate(
            [
                mask_weights(part if part.shape[1:] == size else metrics.upsample(part, size), map_size)
                for part in np.split(masks, range(REGIONS_AT_ONCE, len(masks), REGIONS_AT_ONCE))
            ]
        )
    )
    method = "suppress" if args.run.method == "suppress" else "camal"
    return camal.costs(weights, empty_mask=args.attention.empty_mask, method=method)


# ------------------------------------------------------------------------------------------------------------
# One fold


class Work(NamedTuple):
    """What all folds of a run share."""

    args: Args
    samples: Samples
    targets: np.ndarray  # their masks, or the soft maps of a prior
    contents: Mapping[str, str]  # of files that options name, for which checksums stand
    folds: np.ndarray  # int (N,), the fold in which each sample is tested
    device: torch.device
    precision: str
    group: Group


def describe(work: Work, fold: int) -> dict[str, dict[str, Any]]:
    """All that defines the training of a fold, in JSON's types. Files count by what they say."""
    described = run_folder.without_free_options(dataclasses.asdict(work.args))
    described["run"]["fold"] = fold
    described["training"]["learning_rate"] = learning_rate(work.args)
    # BatchNorm and dropout see a process's part of a batch.
    described["machine"] |= {"precision": work.precision, "processes": work.group.size}
    for group in described.values():
        group |= {name: one for name, one in work.contents.items() if name in group}
    return run_folder.plain(described)


def checksum(content: bytes | memoryview) -> str:
    """What stands for a file in args.json."""
    return f"sha256={hashlib.sha256(content).hexdigest()}"


def learning_rate(args: Args) -> float:
    """The given one, or Table 7's."""
    return args.training.learning_rate or ARCHITECTURES[args.run.model].learning_rate


def folder_of(args: Args, fold: int) -> Path:
    """Where a fold's files are."""
    return args.run.runs_dir / args.run.data / args.run.model / args.run.method / f"fold{fold}"


def build(work: Work, fold: int) -> Classifier:
    """A fold's classifier before training; the last layer, and all without weights, are drawn by the seed."""
    args = work.args
    torch.manual_seed(args.run.seed * 1000 + fold)
    model = Classifier(args.run.model, len(work.samples.classes), args.training.image_size)
    load_weights(model, args.training.weights)
    return model.to(work.device)


@torch.no_grad()
def map_size(model: Classifier, image_size: int) -> tuple[int, int]:
    """Height and width of its feature maps."""
    device = next(model.parameters()).device
    maps = model.eval().features(torch.zeros(1, 3, image_size, image_size, device=device)).maps
    return maps.shape[2], maps.shape[3]


def train_fold(work: Work, fold: int, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """Train and test one fold, from where it stopped; whether it was finished, not interrupted.

    Raises:
        UserError: a folder with other arguments, or one that can't be written.
    """
    folder, group = folder_of(work.args, fold), work.group
    described = describe(work, fold)
    with contextlib.ExitStack() as cleanup:

        def begin() -> tuple[dict[str, Any] | None, bool]:
            cleanup.enter_context(run_folder.lock(folder, "train"))
            run_folder.check_args_file(folder, described)
            return run_folder.load_checkpoint(folder / "checkpoint.pt"), (folder / "scores.json").exists()

        checkpoint, scored = group.first_ones(begin)
        if scored and checkpoint is not None and checkpoint["epoch"] == work.args.training.epochs:
            if group.rank == 0:
                print(f"{folder} is already done.")
            return True
        return _train_fold(work, fold, folder, described, checkpoint, interrupted)


def _train_fold(
    work: Work,
    fold: int,
    folder: Path,
    described: Mapping[str, Mapping[str, Any]],
    checkpoint: Mapping[str, Any] | None,
    interrupted: Callable[[], bool],
) -> bool:
    args, samples, device, group = work.args, work.samples, work.device, work.group
    first = group.rank == 0  # the process that writes
    began_at = 0 if checkpoint is None else checkpoint["epoch"]
    model = build(work, fold)
    size = args.training.image_size
    costs, counted = supervision(args, work.targets, size, map_size(model, size))
    everything = Batch(torch.from_numpy(samples.images), torch.from_numpy(samples.labels), costs, counted)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate(args), weight_decay=args.training.weight_decay
    )
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    shared: nn.Module = model
    if group.size > 1:
        if device.type == "cuda":  # statistics of the whole batch; elsewhere each process uses its own
            synchronised: Any = nn.SyncBatchNorm
            model.network = synchronised.convert_sync_batchnorm(model.network)
        shared = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    learned = torch.from_numpy(np.flatnonzero(work.folds != fold - 1))
    tested = np.flatnonzero(work.folds == fold - 1)
    seconds_per_step = [] if checkpoint is None else [checkpoint["seconds_per_step"]]

    with contextlib.ExitStack() as cleanup:
        writer = None
        if first:
            run_folder.write_args_file(folder, described)
            run_folder.remove_remains(
                folder, ("checkpoint.pt", "args.json", "scores.json", "media/overlay.png")
            )
            writer = SummaryWriter(str(folder), purge_step=began_at + 1)
            cleanup.callback(writer.close)
        bar = cleanup.enter_context(
            tqdm(
                total=args.training.epochs,
                initial=began_at,
                desc=f"fold {fold}/{args.run.folds}",
                disable=not first,
                mininterval=0.5 if sys.stderr.isatty() else 30,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} epochs, "
                "{remaining} left{postfix}",
            )
        )

        def save(epoch: int) -> None:
            if first:
                assert writer is not None
                writer.flush()
                state = {
                    "epoch": epoch,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "seconds_per_step": float(np.median(seconds_per_step)),
                }
                run_folder.save_checkpoint(folder / "checkpoint.pt", state)

        status: dict[str, str] = {}
        for epoch in range(began_at + 1, args.training.epochs + 1):
            started = time.perf_counter()
            means = _epoch(shared, optimizer, everything, learned, work, fold, epoch)
            steps = -(-len(learned) // args.training.batch_size)
            seconds_per_step.append((time.perf_counter() - started) / steps)
            last = epoch == args.training.epochs
            stop = not last and group.any(interrupted(), device)
            status |= {"loss": f"{means['cross_entropy']:.2f}", "accuracy": f"{means['accuracy']:.2f}"}
            if writer is not None:
                for name, value in means.items():
                    writer.add_scalar(f"train/{name}", value, epoch)
                writer.add_scalar("charts/seconds_per_step", seconds_per_step[-1], epoch)
                every = args.machine.test_every
                if every and (epoch % every == 0 or last):
                    found = _test(model, samples, tested, args)
                    for name, score in found.items():
                        writer.add_scalar(f"test/{name}", score, epoch)
                    status |= {
                        f"test {name}": f"{found[name]:.2f}" for name in ("accuracy", "iou") if name in found
                    }
            bar.set_postfix(status, refresh=False)
            bar.update()
            if last or stop or epoch % args.machine.checkpoint_every == 0:
                save(epoch)
            if stop:
                return False
        bar.refresh()
        if first:
            attention_method = args.attention.attention
            scores, picture = evaluate.evaluate(model, samples, tested, attention_method, args.run.seed)
            timing = {"seconds_per_step": float(np.median(seconds_per_step))}
            evaluate.write(folder, evaluate.about(described) | scores | timing, picture)
    if group.size > 1:
        dist.barrier()
    return True


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    everything: Batch,
    learned: Tensor,
    work: Work,
    fold: int,
    epoch: int,
) -> dict[str, float]:
    """One pass over the training set; means over its samples. A last batch that is too small is left out.

    What is random in it depends on its number alone, so that a run goes on as if it had not stopped.

    Raises:
        UserError: a loss that is NaN or infinite, or no batch is large enough.
    """
    args, group = work.args, work.group
    model.train()
    if args.training.freeze_batch_norm:
        freeze_batch_norm(model)
    numbers = (args.run.seed, fold, epoch)
    order = np.random.default_rng(numbers).permutation(len(learned))
    drawn = int(np.random.SeedSequence((*numbers, group.rank)).generate_state(1)[0])
    torch.manual_seed(drawn)  # of dropout and the like, which differs between processes
    # BatchNorm has no variance of one sample.
    least = 2 if batch_norms(model) and not args.training.freeze_batch_norm else 1
    history, sizes = [], []
    for index in torch.split(learned[torch.from_numpy(order)], args.training.batch_size):
        if len(index) < least * group.size:
            continue
        batch = everything.at(group.part(index)).to(work.device)
        history.append(update(model, optimizer, batch, args, group, work.precision))
        sizes.append(len(index))
    if not history:
        raise UserError(
            f"--batch-size {args.training.batch_size} and {len(learned)} images to learn from: "
            f"{group.size} processes need a batch of at least {least * group.size}."
        )
    names = ["cross_entropy", *(["camal_loss"] if everything.costs is not None else []), "accuracy"]
    table = torch.stack(history).cpu().numpy()  # a GPU is waited for only here
    if not np.isfinite(table).all():
        step, term = np.argwhere(~np.isfinite(table))[0]
        raise UserError(
            f"epoch {epoch}: {names[term]} of step {step + 1} is NaN or infinite, and training has stopped. "
            "The last checkpoint is as it was. Try a lower --learning-rate, or --precision fp32."
        )
    return dict(zip(names, np.average(table, axis=0, weights=sizes).tolist(), strict=True))


def _test(model: Classifier, samples: Samples, tested: np.ndarray, args: Args) -> dict[str, float]:
    """Accuracy and alignment on the test set, also where it is shifted."""
    model.eval()
    labels, masks = samples.labels[tested], samples.masks[tested]
    found: dict[str, float] = {}
    for prefix, images in {
        "": samples.images,
        **{f"{name}/": one for name, one in samples.shifted.items()},
    }.items():
        seen = evaluate.look(model, images[tested], labels, args.attention.attention)
        scores = evaluate.alignment(seen, masks, labels)
        found |= {f"{prefix}{name}": score for name, score in scores.items() if score is not None}
    return found


# ------------------------------------------------------------------------------------------------------------
# The run


def check_args(args: Args) -> None:
    """Refuse what can't be trained.

    Raises:
        UserError: with the option, what was given and what is valid.
    """
    at_least = {
        "folds": (args.run.folds, 2),
        "fold": (args.run.fold, 0),
        "seed": (args.run.seed, 0),
        "samples": (args.run.samples, 1),
        "epochs": (args.training.epochs, 1),
        "batch-size": (args.training.batch_size, 2),
        "learning-rate": (args.training.learning_rate, 0),
        "weight-decay": (args.training.weight_decay, 0),
        "camal-coef": (args.attention.camal_coef, 0),
        "torch-threads": (args.machine.torch_threads, 0),
        "checkpoint-every": (args.machine.checkpoint_every, 1),
        "test-every": (args.machine.test_every, 0),
    }
    for option, (value, least) in at_least.items():
        if not least <= value < 2**31:
            raise UserError(f"--{option} {value}: give a number from {least} to {2**31 - 1}.")
    if args.run.fold > args.run.folds:
        raise UserError(f"--fold {args.run.fold}: there are {args.run.folds} folds.")
    if (args.run.method == "prior") != (args.attention.prior is not None):
        raise UserError(
            "--method prior and --prior PATH go together: the path is a file that python -m "
            "camal_rl.vision.priors wrote, or a folder of grey PNG files."
        )
    if args.attention.prior is not None and not args.attention.prior.exists():
        raise UserError(f"--prior {args.attention.prior}: no such file or folder.")


def _targets(args: Args, samples: Samples, first: bool) -> tuple[np.ndarray, dict[str, str]]:
    """What attention is to be pulled to, and the checksum of a prior's maps."""
    if args.attention.prior is None:
        return samples.masks, {}
    from camal_rl.vision import priors

    maps = priors.load_regions(args.attention.prior, samples.names)
    dead = float((maps.max(axis=(1, 2)) == 0).mean())
    if dead == 1:
        raise UserError(f"--prior {args.attention.prior}: all maps are zero everywhere.")
    if dead and first:
        print(f"{dead:.1%} of the prior's maps are zero everywhere: those images count as without a target.")
    return maps, {"prior": checksum(maps.data)}


def train(args: Args, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """Train and test the folds; whether all were finished.

    Raises:
        UserError: arguments, data, machine or folder with which that can't be done.
    """
    check_args(args)
    device = choose_device(args.machine.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    precision = choose_precision(args.machine.precision, device)
    Classifier.check(args.run.model, args.training.image_size)
    contents = {}
    if args.training.weights not in ("imagenet", "none"):
        try:
            contents["weights"] = checksum(Path(args.training.weights).read_bytes())
        except OSError as error:
            raise UserError(
                f"--weights {args.training.weights}: {error.strerror}. Or choose imagenet or none."
            ) from error
    keep_freed_memory()
    with processes(device) as group, contextlib.ExitStack() as cleanup:
        if args.training.batch_size % group.size:
            raise UserError(
                f"--batch-size {args.training.batch_size} can't be shared by {group.size} processes: "
                "give a multiple."
            )
        cleanup.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(
            args.machine.torch_threads or max(1, min(torch.get_num_threads(), cores()) // group.size)
        )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        samples = datasets.load(
            args.run.data,
            args.run.data_dir,
            args.training.image_size,
            args.run.samples,
            progress=group.rank == 0,
        )
        folds = datasets.folds(samples.labels, args.run.folds, args.run.seed)
        targets, checksums = _targets(args, samples, group.rank == 0)
        work = Work(args, samples, targets, contents | checksums, folds, device, precision, group)
        if group.rank == 0:
            print(
                f"camal_rl {__version__}: {args.run.model}, {args.run.data} ({len(samples.labels):,} images, "
                f"{len(samples.classes)} classes), {args.run.method}, on {device} ({precision})"
                f"{f', {group.size} processes' if group.size > 1 else ''}\n"
                f"Run folders: {folder_of(args, 1).parent}\n"
                f"TensorBoard: tensorboard --logdir {args.run.runs_dir}",
                flush=True,
            )
        chosen = [args.run.fold] if args.run.fold else range(1, args.run.folds + 1)
        for fold in chosen:
            if group.any(interrupted(), device) or not train_fold(work, fold, interrupted):
                return False
        if group.rank == 0:
            print(f"Done. Tables and figures: python -m camal_rl.vision.report {args.run.runs_dir}")
    return True


def main(args: Args) -> int:
    """Train, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""

    def run(interrupted: Callable[[], bool]) -> None:
        try:
            train(args, interrupted)
        except UserError:
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the machine's first process says the same
                sys.exit(2)
            raise

    return run_to_checkpoint(run, "epoch", "--batch-size, --image-size or --samples")


if __name__ == "__main__":
    sys.exit(main(ARGS))
