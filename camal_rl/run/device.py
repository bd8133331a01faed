"""What a network runs on and computes in, as asked for or as is fastest here; and memory kept for it."""

from __future__ import annotations

import ctypes
import platform
from typing import Literal, cast

import torch

from camal_rl.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]


def choose_device(name: str) -> torch.device:
    """The device to train on; `auto` is CUDA where there is one, else the CPU.

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


def choose_precision(name: str, device: torch.device) -> Precision:
    """What the network computes in; `auto` is bf16 where the hardware has it, because it is faster there.

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
    # Without the instructions a CPU emulates bf16 and takes longer. torch has no public name for this yet.
    native = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return "bf16" if any(supported() for supported in native) else "fp32"


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next minibatch, which needs as much again.

    It gives big blocks back to the system otherwise, and to get them again, page by page, takes a sixth of an
    update. One heap serves all threads, because those of other threads are too small for such blocks. Only
    glibc knows these settings (mallopt(3)); elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for setting, value in (
            (-4, 0),
            (-1, 2**31 - 1),
            (-8, 1),
        ):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(setting, value)
