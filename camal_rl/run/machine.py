"""Cores and memory that this process may use: the machine's, or less of them in a container."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use: version 2 of it in files, version 1 in folders."""


def processor() -> tuple[str, set[str] | None]:
    """Its name, and the names of its instruction sets, None where the system does not list them."""
    try:
        described = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    model = re.search(r"^model name\s*:\s*(.+)", described, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)", described, re.MULTILINE)
    name = model[1] if model else platform.processor() or platform.machine()
    return name, set(flags[1].split()) if flags else None


def cores() -> int:
    """Cores that this process may use, at least 1."""
    share = core_share()
    return allowed_cores() if share is None else min(allowed_cores(), max(1, round(share)))


def allowed_cores() -> int:
    """Cores that this process may run on, whatever share of their time a container gives it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_share() -> float | None:
    """How many cores' time a container's quota gives, or None without a quota."""
    quota, period = _numbers("cpu.max") or (None, None)
    if quota is None:
        quota, period = (_number(f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return None if quota is None or not period or quota < 0 else quota / period


def installed_memory() -> int | None:
    """Bytes of the whole machine; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def memory_limit() -> int | None:
    """Bytes that a container may use, or None without a limit."""
    limit = _number("memory.max")
    if limit is None:
        limit = _number("memory/memory.limit_in_bytes")
    return None if limit is None or limit >= 2**60 else limit  # version 1 writes a huge one for none


def available_memory() -> int | None:
    """Bytes that this machine, and the container this runs in, have left; None where they don't say."""
    found = []
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable: *(\d+) kB", MEMORY_INFO.read_text(), re.MULTILINE)
        if match:
            found.append(int(match[1]) * 1024)
    used = _number("memory.current")
    if used is None:
        used = _number("memory/memory.usage_in_bytes")
    limit = memory_limit()
    if limit is not None and used is not None:
        found.append(limit - used)
    return min(found, default=None)


def _number(file: str) -> int | None:
    return (_numbers(file) or (None,))[0]


def _numbers(file: str) -> tuple[int | None, ...]:
    """The words of a file, None for those that are no number; nothing where there is no file."""
    try:
        words = (CGROUP / file).read_text().split()
    except OSError:
        return ()
    return tuple(int(word) if word.lstrip("-").isdigit() else None for word in words)
