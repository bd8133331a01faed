"""Processes that torchrun starts -> a group that shares the work on batches, or this process alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from camal_rl.errors import UserError

T = TypeVar("T")
GRACE = 0.2
"""Seconds in which threads of a group can finish before it ends."""


class Group(NamedTuple):
    """The processes that torchrun started, or this one alone."""

    rank: int = 0
    size: int = 1

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor without gradients over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return True in every process if the flag is True in one."""
        return bool(self.total(torch.tensor(int(flag), device=device)))

    def part(self, index: Tensor) -> Tensor:
        """This process's share of a batch's indices."""
        return index[self.rank :: self.size]

    def first_ones(self, find: Callable[[], T]) -> T:
        """Call a function in the first process alone; return its result, or raise its mistake, in all.

        So processes agree also where each would find something else on its machine's disk.
        """
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [find()]
            except UserError as mistake:
                found = [mistake]
        if self.size > 1:
            dist.broadcast_object_list(found)
        if isinstance(found[0], UserError):
            raise found[0]
        value: T = found[0]
        return value


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's environment variables describe."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
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
