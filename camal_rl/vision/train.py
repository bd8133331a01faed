"""Train a classifier with attention supervision: cross-entropy plus the CAMAL loss (Eq. 2), fold by fold.

Hyperparameters are those of Table 7. Reads from top to bottom: arguments, losses, update, one fold, the run.
Started by torchrun, several processes share each batch, and the loss is that of the whole batch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.command_line import Count, Number, Positive, RunName, check_ranges, parse, run_to_checkpoint
from camal_rl.vision import need_torchvision
from camal_rl.vision.samples import GENERATED, DataName, Samples

# -------------------------------------------------------------------------------------------------- arguments


@dataclass
class Args:
    """Train a classifier with CAMAL, fold by fold. The same command again goes on where it stopped."""

    # run
    model: Literal[
        "resnet18", "convnext_t", "efficientnet_b0", "vit_b_16", "swin_v2_t", "maxvit_t", "mobilenet_v2"
    ] = "resnet18"
    """network, from torchvision"""
    data: DataName = "shapes"
    """data set: shapes is generated, the others are made of what lies in --data-dir"""
    method: Literal["camal", "vanilla", "prior", "suppress"] = "camal"
    """camal (Eq. 2), vanilla (cross-entropy), prior (maps of --prior for masks), suppress (beta alone)"""
    name: RunName = ""
    """name of the run's folder, and in reports; the method's unless given"""
    folds: Positive = 10
    """folds of the cross-validation, the same for every method"""
    fold: Count = 0
    """the only fold to train, from 1 to --folds; 0 trains all"""
    seed: Count = 1
    """seed of folds, weights and batches"""
    samples: Positive = GENERATED
    """number of images to generate, of shapes and cutouts"""
    runs_dir: Path = Path("runs/vision")
    """parent of the run folders <data>/<model>/<name>/fold<k>"""
    data_dir: Path = Path("data")
    """folder that holds the data sets as they are published, or the cut-outs"""
    checkpoint_every: Positive = 10
    """epochs between checkpoints"""
    test_every: Count = 10
    """epochs between measurements on the test set; 0 measures at the end alone"""

    # training
    epochs: Positive = 500
    """passes over the training set (Table 7)"""
    learning_rate: Number = 0.0
    """AdamW's learning rate; 0 takes Table 7's: 1e-3, or 1e-4 for ViT, Swin and MaxViT"""
    weight_decay: Number = 0.01
    """AdamW's weight decay (Table 7)"""
    batch_size: Positive = 32
    """images in a batch of all processes together (Table 7)"""
    weights: str = "imagenet"
    """weights to start from: imagenet, none (random), or a file"""
    image_size: Positive = 224
    """side of the images in pixels"""
    freeze_batch_norm: bool = False
    """use BatchNorm's running statistics, so that no sample sees another"""

    # CAMAL
    camal_coef: Number = 1.0
    """lambda of Eq. 2 (Table 7)"""
    attention: Literal["gradcam", "magnitude", "layercam", "hirescam", "diffgradcam"] = "gradcam"
    """how attention is extracted; gradcam is Eq. 3, diffgradcam with --camal-coef 3 better on photographs"""
    empty_mask: Literal["ignore", "suppress"] = "ignore"
    """images without a target: no loss, or beta alone"""
    prior: Path | None = None
    """soft maps in place of masks: a file of camal_rl.vision.priors, or a folder of PNG files"""

    # machine
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; torchrun gives each process a GPU of its own"""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """auto is bf16 where the hardware has it"""
    torch_threads: Count = 0
    """CPU threads; 0 for all cores"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.fold > self.folds:
            raise UserError(f"--fold {self.fold}: there are {self.folds} folds.")
        if (self.method == "prior") != (self.prior is not None):
            raise UserError(
                "--method prior and --prior PATH go together: the path is a file that python -m "
                "camal_rl.vision.priors wrote, or a folder of grey PNG files."
            )


if __name__ == "__main__":
    ARGS = parse(Args, "python -m camal_rl.vision.train")  # before torch is imported: --help answers at once
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
from camal_rl.run.device import allow_tf32, choose_device, choose_precision, keep_freed_memory
from camal_rl.run.files import checksum
from camal_rl.run.machine import cores
from camal_rl.vision import datasets, evaluate, priors
from camal_rl.vision.models import (
    ARCHITECTURES,
    Classifier,
    batch_norms,
    check_image_size,
    class_cam,
    freeze_batch_norm,
    load_weights,
    map_size,
    normalize,
)
from camal_rl.vision.processes import Group, processes

WRITTEN = ("checkpoint.pt", "args.json", "scores.json", "media/overlay.png")
"""Files of a fold's folder, besides TensorBoard's."""
SHOWN = ("train/loss", "train/accuracy", "test/accuracy", "test/iou")
"""Scalars beside the progress bar."""

# ------------------------------------------------------------------------------------------ losses and update


class Batch(NamedTuple):
    """Samples to learn from: one process's part of a batch."""

    images: Tensor  # uint8 (B, 3, S, S)
    labels: Tensor  # int64 (B,)
    mask_weights: Tensor  # (B, 2, h, w)
    supervised: Tensor  # (B,), more than 0 where attention is supervised; over all parts they sum to 1
    total: Tensor  # scalar, the number of samples of all parts

    def to(self, device: torch.device) -> Batch:
        """Copy all tensors to a device; copies to a GPU are not waited for."""
        source = (values.pin_memory() if device.type == "cuda" else values for values in self)
        return Batch._make(values.to(device, non_blocking=True) for values in source)


def losses(model: nn.Module, batch: Batch, args: Args, precision: str) -> dict[str, Tensor]:
    """Return the loss of Eq. 2 and its terms for a part of a batch; the parts add up to the means of all.

    The model is a `Classifier`, or `DistributedDataParallel` of one.
    """
    images = normalize(batch.images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = model(images)
    means = {
        "cross_entropy": F.cross_entropy(output.logits, batch.labels, reduction="sum") / batch.total,
        "accuracy": (output.logits.argmax(dim=1) == batch.labels).sum() / batch.total,
    }
    loss = means["cross_entropy"]
    if args.method != "vanilla":  # CAMAL
        cam = class_cam(output, batch.labels, args.attention)  # (B, h, w), Eq. 3
        heat = attention.normalize(cam)  # in [0, 1]
        alpha, beta = camal.projected_alpha_beta(heat, batch.mask_weights)  # (B,), Eq. 1
        costs = beta if args.method == "suppress" else beta - alpha
        means["camal_loss"] = (batch.supervised * costs).sum()
        loss = loss + args.camal_coef * means["camal_loss"]  # Eq. 2
    return {"loss": loss, **means}


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, args: Args, group: Group, precision: str
) -> dict[str, Tensor]:
    """Take a step on a batch, of which this process has a part; return the means of the whole batch."""
    means = losses(model, batch, args, precision)
    loss = means["loss"] * group.size  # DistributedDataParallel takes the mean of gradients, not their sum
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    totals = group.total(torch.stack(list(means.values())).detach())
    return dict(zip(means, totals, strict=True))


def supervision(
    args: Args, masks: np.ndarray, image_size: int, map_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Project masks to mask_weights, (N, 2, h, w), and say where attention is supervised, bool (N,).

    Masks are uint8 {0, 1} (N, S, S), or a prior's soft maps, float32 [0, 1] (N, h', w'). These are brought to
    the size of images before, as attention is by Eq. 3: a cell of attention's between the pixels of a coarser
    map would not be supervised.
    """
    size = (image_size, image_size)
    full = (mask if mask.shape == size else metrics.upsample(mask[None], size)[0] for mask in masks)
    weights = torch.from_numpy(np.stack([mask_weights(mask, map_size) for mask in full]))
    has_target = weights[:, 0].flatten(1).any(dim=1)
    return weights, has_target | (args.empty_mask == "suppress")


# --------------------------------------------------------------------------------------------------- one fold


class Work(NamedTuple):
    """All that the folds of a run share."""

    args: Args
    samples: Samples
    targets: np.ndarray  # their masks, or the soft maps of a prior
    checksums: Mapping[str, str]  # of files, by the option that names them
    folds: np.ndarray  # int (N,), the fold in which each sample is tested
    device: torch.device
    precision: Literal["fp32", "tf32", "bf16"]
    group: Group


def learning_rate(args: Args) -> float:
    """The given learning rate, or Table 7's."""
    return args.learning_rate or ARCHITECTURES[args.model].learning_rate


def folder_of(args: Args, fold: int) -> Path:
    """The folder of a fold."""
    return args.runs_dir / args.data / args.model / (args.name or args.method) / f"fold{fold}"


class Learner:
    """The training of a fold, from a checkpoint's `state` on: its classifier, optimizer and samples."""

    def __init__(self, work: Work, fold: int, checkpoint: Mapping[str, Any] | None) -> None:
        args, samples = work.args, work.samples
        self.work, self.fold, self.epoch = work, fold, 0
        self.seconds_per_step: list[float] = []
        # Of the last layer, and of all without trained weights.
        torch.manual_seed((args.seed * 1000 + fold) % 2**63)
        self.model = Classifier(args.model, len(samples.classes), args.image_size)
        load_weights(self.model, args.weights)
        self.model.to(work.device)
        size = map_size(self.model, args.image_size)
        self.mask_weights, self.supervised = supervision(args, work.targets, args.image_size, size)
        self.learned = torch.from_numpy(np.flatnonzero(work.folds != fold - 1))
        self.tested = np.flatnonzero(work.folds == fold - 1)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate(args), weight_decay=args.weight_decay
        )
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.epoch, self.seconds_per_step = checkpoint["epoch"], [checkpoint["seconds_per_step"]]
        self.shared: nn.Module = self.model
        if work.group.size > 1:
            on_gpu = work.device.type == "cuda"
            if on_gpu:  # statistics of the whole batch; elsewhere each process uses its own
                synchronised: Any = nn.SyncBatchNorm
                self.model.network = synchronised.convert_sync_batchnorm(self.model.network)
            self.shared = DistributedDataParallel(self.model, device_ids=[work.device] if on_gpu else None)

    def state(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds_per_step": float(np.median(self.seconds_per_step)),
        }

    def batch(self, index: Tensor) -> Batch:
        """This process's part of the batch with these samples, int64 (B,)."""
        group, samples = self.work.group, self.work.samples
        images, labels = torch.from_numpy(samples.images), torch.from_numpy(samples.labels)
        supervised = self.supervised[index].float()
        supervised = supervised / supervised.sum().clamp(min=1)
        part = group.part(index)
        fields = (images[part], labels[part], self.mask_weights[part], group.part(supervised))
        return Batch(*fields, torch.tensor(len(index)))

    def learn(self) -> dict[str, float]:
        """Pass over the training set; return means over its samples. A last batch too small is left out.

        Randomness in an epoch depends on its number alone, so that a run goes on as if it had not stopped.

        Raises:
            UserError: a loss is NaN or infinite, or no batch is large enough.
        """
        args, group = self.work.args, self.work.group
        self.epoch += 1
        started = time.perf_counter()
        self.model.train()
        if args.freeze_batch_norm:
            freeze_batch_norm(self.model)
        numbers = (args.seed, self.fold, self.epoch)
        order = torch.from_numpy(np.random.default_rng(numbers).permutation(len(self.learned)))
        # Of dropout and the like, which differs between processes.
        torch.manual_seed(int(np.random.SeedSequence((*numbers, group.rank)).generate_state(1)[0]))
        # BatchNorm has no variance of one sample.
        least = group.size * (2 if batch_norms(self.model) and not args.freeze_batch_norm else 1)
        batches = [b for b in torch.split(self.learned[order], args.batch_size) if len(b) >= least]
        if not batches:
            raise UserError(
                f"--batch-size {args.batch_size} and {len(self.learned)} images to learn from: "
                f"{group.size} processes need a batch of at least {least}."
            )
        history = []
        for index in batches:
            batch = self.batch(index).to(self.work.device)
            means = update(self.shared, self.optimizer, batch, args, group, self.work.precision)
            history.append(torch.stack(list(means.values())))
        table = torch.stack(history).cpu().numpy()  # a GPU is waited for only here
        if len(broken := np.argwhere(~np.isfinite(table))):
            step, term = broken[0]
            raise UserError(
                f"epoch {self.epoch}: {list(means)[term]} of step {step + 1} is NaN or infinite, so training "
                "stops; the last checkpoint is as it was. Try a lower --learning-rate or --precision fp32."
            )
        self.seconds_per_step.append((time.perf_counter() - started) / len(batches))
        values = np.average(table, axis=0, weights=[len(index) for index in batches]).tolist()
        scalars = {f"train/{name}": value for name, value in zip(means, values, strict=True)}
        return {**scalars, "charts/seconds_per_step": self.seconds_per_step[-1]}

    def test(self) -> dict[str, float]:
        """Accuracy and alignment on the test set, also where it is shifted."""
        _, scores = evaluate.measure(self.model, self.work.samples, self.tested, self.work.args.attention)
        return {
            f"test/{shift}/{name}".replace("//", "/"): value
            for shift, values in scores.items()
            for name, value in values.items()
            if value is not None
        }


def train_fold(work: Work, fold: int, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """Train and test a fold from where it stopped; True when it is finished, False when interrupted."""
    args, group, folder = work.args, work.group, folder_of(work.args, fold)
    chosen = {"name": args.name or args.method, "fold": fold, "learning_rate": learning_rate(args)}
    # BatchNorm and dropout see a process's part of a batch, so the number of processes counts. Files count by
    # their content.
    chosen |= {"precision": work.precision, "processes": group.size, **work.checksums}
    described = run_folder.describe(args, chosen)
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[dict[str, Any] | None, bool]:
            stack.enter_context(run_folder.lock(folder, "train"))
            run_folder.check_args_file(folder, described)
            return run_folder.load_checkpoint(folder / "checkpoint.pt"), (folder / "scores.json").exists()

        checkpoint, scored = group.first_ones(begin)
        if scored and checkpoint is not None and checkpoint["epoch"] == args.epochs:
            if group.rank == 0:
                other = ", by other code of the package than this" if run_folder.by_other_code(folder) else ""
                print(f"{folder} is already done{other}.")
            return True
        learner = Learner(work, fold, checkpoint)
        if group.rank == 0:
            run_folder.write_args_file(folder, described, begun=checkpoint is not None)
            run_folder.remove_remains(folder, WRITTEN)
            writer = SummaryWriter(str(folder), purge_step=learner.epoch + 1)
            stack.callback(writer.close)
        bar = tqdm(
            total=args.epochs,
            initial=learner.epoch,
            desc=f"fold {fold}/{args.folds}",
            unit="epoch",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=group.rank > 0,
        )
        stack.enter_context(bar)
        shown: dict[str, float] = {}
        while learner.epoch < args.epochs:
            scalars = learner.learn()
            epoch, last = learner.epoch, learner.epoch == args.epochs
            stop = not last and group.any(interrupted(), work.device)
            if group.rank == 0:
                if args.test_every and (epoch % args.test_every == 0 or last):
                    scalars |= learner.test()
                for name, value in scalars.items():
                    writer.add_scalar(name, value, epoch)
                shown |= {name: scalars[name] for name in SHOWN if name in scalars}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if last or stop or epoch % args.checkpoint_every == 0:
                    writer.flush()
                    run_folder.save_checkpoint(folder / "checkpoint.pt", learner.state())
            if stop:
                return False
        if group.rank == 0:
            bar.refresh()
            result = evaluate.evaluate(learner.model, work.samples, learner.tested, args.attention, args.seed)
            evaluate.write(folder, described["args"], learner.state()["seconds_per_step"], *result)
    if group.size > 1:
        dist.barrier()
    return True


# ---------------------------------------------------------------------------------------------------- the run


def prepare(args: Args, device: torch.device, group: Group) -> Work:
    """Read the samples, and the maps of a prior, and deal them out to folds."""
    checksums = {}
    if args.weights not in ("imagenet", "none"):
        try:
            checksums["weights"] = checksum(Path(args.weights).read_bytes())
        except OSError as error:
            raise UserError(
                f"--weights {args.weights}: {error.strerror}. Or choose imagenet or none."
            ) from error
    first = group.rank == 0
    samples = datasets.load(args.data, args.data_dir, args.image_size, args.samples, progress=first)
    if args.data == "cutouts":
        checksums["pictures"] = checksum(samples.images.data)
    folds = datasets.folds(samples.labels, args.folds, args.seed, samples.objects)
    targets = samples.masks
    if args.prior is not None:
        targets = priors.load_regions(args.prior, samples.names)
        checksums["prior"] = checksum(targets.data)
        dead = float(priors.dead(targets).mean())
        if dead == 1:
            raise UserError(f"--prior {args.prior}: all maps are zero everywhere.")
        if dead and first:
            print(
                f"{dead:.1%} of the prior's maps are zero everywhere: their images count as without target."
            )
    precision = choose_precision(args.precision, device)
    return Work(args, samples, targets, checksums, folds, device, precision, group)


def train(args: Args, interrupted: Callable[[], bool] = lambda: False) -> bool:
    """Train and test the folds; True when all are finished, False when interrupted.

    Raises:
        UserError: arguments, data, machine or folder with which that can't be done.
    """
    check_image_size(args.model, args.image_size)
    device = choose_device(args.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    keep_freed_memory()
    with processes(device) as group, contextlib.ExitStack() as stack:
        if args.batch_size % group.size:
            raise UserError(
                f"--batch-size {args.batch_size} can't be shared by {group.size} processes: give a multiple."
            )
        work = prepare(args, device, group)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, as torchrun says
        torch.set_num_threads(args.torch_threads or max(1, min(torch.get_num_threads(), cores()) // here))
        allow_tf32(work.precision == "tf32")
        if group.rank == 0:
            print(
                f"camal_rl {__version__}: {args.model}, {args.data} ({len(work.samples.labels):,} images), "
                f"{args.method}, on {device} ({work.precision}), processes: {group.size}\n"
                f"Run folders: {folder_of(args, 1).parent}\n"
                f"TensorBoard: tensorboard --logdir {args.runs_dir}",
                flush=True,
            )
        for fold in [args.fold] if args.fold else range(1, args.folds + 1):
            if group.any(interrupted(), device) or not train_fold(work, fold, interrupted):
                return False
        if group.rank == 0:
            print(f"Done. Tables and figures: python -m camal_rl.vision.report {args.runs_dir}")
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
