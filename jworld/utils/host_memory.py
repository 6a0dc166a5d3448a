"""Memory of this host: what is free, and whether a folder lies in it."""

import pathlib
import shutil

_MEMORY = pathlib.Path("/proc/meminfo")
_MOUNTS = pathlib.Path("/proc/mounts")
#: Limit and use of this container's memory, version 2 and 1 of control groups.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int | None:
    """Return the bytes that this process and others of its container can still allocate; None where unknown."""
    found = []
    try:
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for limit, used in _LIMITS:
        try:
            found.append(int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text()))
        except (OSError, ValueError):  # "max": no limit
            continue
    return max(min(found), 0) if found else None


def is_in_memory(folder: pathlib.Path) -> bool:
    """Return whether a folder lies on a file system in memory (tmpfs or ramfs)."""
    try:
        mounts = [line.split()[1:3] for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return False
    resolved = folder.resolve()
    above = [(len(place), kind) for place, kind in mounts if resolved.is_relative_to(place)]
    return max(above, default=(0, ""))[1] in ("tmpfs", "ramfs")


def free(folder: pathlib.Path) -> int:
    """Return the bytes that fit into a folder, which are also limited by memory if it lies there."""
    space = shutil.disk_usage(folder).free
    memory = available() if is_in_memory(folder) else None
    return space if memory is None else min(space, memory)
