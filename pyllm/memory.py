"""Memory that a load may count on, in bytes."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 62
# Files of a cgroup's limit and use, and the line of memory.stat with what is used but can be dropped; versions 2 and 1.
_V2 = "memory.max", "memory.current", "inactive_file"
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def available() -> int:
    """What the system says is available without swapping, or what is left of the cgroups' limits if that is less."""
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
    """The least room in the cgroup of this process and those above it. In a container the path may be the host's: folders that are not
    there limit nothing, and the root is the container's."""
    try:
        lines = [line.split(":", 2) for line in _MEMBERSHIP.read_text("utf-8", "surrogateescape").splitlines()]
    except OSError:
        return _NO_LIMIT
    rooms = [_NO_LIMIT]
    for _, controllers, path in lines:
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (_CGROUP / "memory", _V1) if controllers else (_CGROUP, _V2)
        folder = root / path.lstrip("/")
        rooms += [_room(f, *files) for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return min(rooms)


def _room(folder: Path, limit_file: str, use_file: str, droppable: str) -> int:
    try:
        limit = (folder / limit_file).read_text().strip()
        if limit == "max":
            return _NO_LIMIT
        used = int((folder / use_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get(droppable, 0))
    except (OSError, ValueError):
        return _NO_LIMIT
