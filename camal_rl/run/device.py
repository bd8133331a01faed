"""Device, number type and threads that a network runs with, as asked for or as is fastest here."""

from __future__ import annotations

import ctypes
import platform
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F

from camal_rl.errors import UserError
from camal_rl.run.machine import cores
from camal_rl.run.workers import Workers

Precision = Literal["fp32", "tf32", "bf16"]


def prepare_device(
    name: str, precision: str, threads: int, stack: ExitStack
) -> tuple[torch.device, Precision, Workers]:
    """Choose device and precision, and start the threads that play and learn; `stack` undoes it all.

    torch has one thread until `Workers.run` gives each of its threads a share: the rounding of a network's
    initial weights depends on their number.

    Args:
        name: of the device, see `choose_device`.
        precision: see `choose_precision`.
        threads: CPU threads, 0 for all cores.

    Raises:
        UserError: the device or the precision is not to be had here.
    """
    device = choose_device(name)
    chosen = choose_precision(precision, device)
    keep_freed_memory()
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    threads = threads or min(torch.get_num_threads(), cores())
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    allow_tf32(chosen == "tf32")
    if device.type == "cuda":
        stack.enter_context(torch.cuda.device(device))  # also for graphs, which record on the current device
    on_cpu = device.type == "cpu"
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    play_dtype = dtype if on_cpu or computes_bf16() else torch.float32
    return device, chosen, stack.enter_context(Workers(threads, dtype, play_dtype, divide=on_cpu))


@torch.no_grad()
def inference_replica(agent: Any, dtype: torch.dtype, batch_size: int) -> Any:
    """Return a replica of an agent on the CPU for many small batches without gradients, with all prepared.

    The weights for pixels are scaled. In bf16 the hidden layer's weight is laid out, which would be most of
    the layer's time in every pass. torch.compile uses the same operations, which have no public name; where
    they are missing the layer is left as it is.
    """
    replica = agent.replica(dtype).cpu()
    conv = replica.conv1
    weight, bias = (conv.weight / 255).to(dtype), conv.bias.to(dtype)
    conv1 = partial(F.conv2d, weight=weight, bias=bias, stride=conv.stride)
    fc, ops = replica.fc, torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    in_bf16 = dtype == torch.bfloat16
    if in_bf16 and all(hasattr(ops, name) for name in names) and ops._is_mkldnn_bf16_supported():
        packed = ops._reorder_linear_weight(fc.weight, batch_size)
        fc = partial(ops._linear_pointwise, W=packed, B=fc.bias, attr="none", scalars=[], algorithm="")
    del replica.conv1, replica.fc  # or functions could not take the places of modules
    replica.conv1, replica.fc = conv1, fc
    return replica


def choose_device(name: str) -> torch.device:
    """Return the device to train on; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} is not a device to train on")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}). "
            f"Choose cpu{', or cuda' if torch.cuda.is_available() else ''}."
        ) from error
    return device


def gpu_memory() -> int | None:
    """Bytes of the GPU that is used unless another one is named, or None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the network's precision; `auto` is bf16 where the hardware has it, because it is faster there.

    Raises:
        UserError: tf32 elsewhere than on CUDA.
    """
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32 is for CUDA, and this trains on {device}: choose fp32 or bf16.")
    if name != "auto":
        return cast("Precision", name)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if computes_bf16() else "fp32"


def computes_bf16() -> bool:
    """Return whether the processor has instructions for bf16; without, it emulates them and takes longer."""
    # torch has no public name for this yet.
    native = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return any(supported() for supported in native)


def allow_tf32(allowed: bool) -> None:
    """Let a GPU multiply fp32 in TF32 or not; torch does by default, and in convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next minibatch, which needs as much again.

    It gives big blocks back to the system otherwise, and to get them again, page by page, takes a sixth of an
    update. One heap serves all threads, because those of other threads are too small for such blocks. Only
    glibc knows these settings (mallopt(3)); elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for setting, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):
            libc.mallopt(setting, value)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
