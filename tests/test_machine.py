"""Cores and memory: the machine's, and what a container leaves of them."""

import os
from pathlib import Path

import pytest

from camal_rl.run import machine

GIB = 2**30


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with six cores that says nothing yet; files go into this folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(machine, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for folder in ("cpu", "memory"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_without_a_container_the_machine_counts(container: Path) -> None:
    assert (machine.cores(), machine.core_share(), machine.memory_limit()) == (6, None, None)
    assert machine.available_memory() is None
    (container / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 7 kB\nMemAvailable: {2**20} kB\n")
    assert machine.available_memory() == GIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "50000 200000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 6),
        ({"cpu.max": ""}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_quota_bounds_the_cores(container: Path, files: dict[str, str], cores: int) -> None:
    for name, content in files.items():
        (container / name).write_text(content)
    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        ({"memory.max": "max\n", "memory.current": "5\n"}, None, 8 * GIB),
        ({"memory.max": f"{5 * GIB}\n", "memory.current": f"{GIB}\n"}, 5 * GIB, 4 * GIB),
        ({"memory.max": f"{99 * GIB}\n", "memory.current": f"{GIB}\n"}, 99 * GIB, 8 * GIB),
        (
            {"memory/memory.limit_in_bytes": f"{3 * GIB}\n", "memory/memory.usage_in_bytes": f"{GIB}\n"},
            3 * GIB,
            2 * GIB,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            None,
            8 * GIB,
        ),
    ],
)
def test_a_containers_limit_bounds_the_memory(
    container: Path, files: dict[str, str], limit: int | None, left: int
) -> None:
    (container / "meminfo").write_text(f"MemAvailable: {8 * 2**20} kB\n")
    for name, content in files.items():
        (container / name).write_text(content)
    assert machine.memory_limit() == limit
    assert machine.available_memory() == left


def test_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.processor(), "also where the system does not say it"
    (tmp_path / "cpuinfo").write_text("model name\t: Fast 9000\nflags\t\t: sse avx2\n")
    assert machine.processor() == "Fast 9000"
