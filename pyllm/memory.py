"""Memory that a load may count on, in bytes."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """What the system says is available without swapping, or what is left of the cgroup's limit if that is less."""
    return min(_system(), _cgroup())


def _system() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2      # no figure of free memory: half of all
    return 4 << 30


def _cgroup() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return 1 << 62
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 1 << 62
