"""Files of Linux -> cores and memory that this process may use: the machine's, or less in a container."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use: version 2 of it in files, version 1 in folders."""


def processor() -> str:
    """The processor's name."""
    model = re.search(r"^model name\s*:\s*(.+)", _text(CPU_INFO), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores that this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = core_share()
    return allowed if share is None else min(allowed, max(1, round(share)))


def core_share() -> float | None:
    """The cores' time that a container's quota gives, in cores, or None without a quota."""
    words = _words("cpu.max") or [*_words("cpu/cpu.cfs_quota_us"), *_words("cpu/cpu.cfs_period_us")]
    return None if len(words) != 2 or words[0] in ("max", "-1") else int(words[0]) / int(words[1])


def memory_limit() -> int | None:
    """Bytes that a container may use, or None without a limit."""
    words = _words("memory.max") or _words("memory/memory.limit_in_bytes")
    limited = words and words[0] != "max" and int(words[0]) < 2**60  # version 1 writes a huge one for none
    return int(words[0]) if limited else None


def available_memory() -> int | None:
    """Bytes that this machine, and the container this runs in, have left; None where they don't say."""
    machine = re.findall(r"^MemAvailable: *(\d+) kB", _text(MEMORY_INFO), re.MULTILINE)
    left = [1024 * int(kilobytes) for kilobytes in machine]
    used = _words("memory.current") or _words("memory/memory.usage_in_bytes")
    if used and (limit := memory_limit()) is not None:
        left.append(limit - int(used[0]))
    return min(left, default=None)


def _words(file: str) -> list[str]:
    return _text(CGROUP / file).split()


def _text(path: Path) -> str:
    """The content of a file, nothing where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
