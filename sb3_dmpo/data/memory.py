"""How much memory is left, without psutil."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
#: Limit and use of the process's control group: version 2, then version 1
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def _machine_memory() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        # Free pages only: an underestimate, because the page cache could be given up as well
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _container_memory() -> int | None:
    for limit, usage in _CGROUPS:
        try:
            return int(limit.read_text()) - int(usage.read_text())
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return None


def available_memory() -> int | None:
    """
    Bytes that can be allocated without swapping, None where the system does not tell.

    The smaller one of what the machine and the container (control group) have left.
    """
    sizes = [size for size in (_machine_memory(), _container_memory()) if size is not None]
    return max(min(sizes), 0) if sizes else None


def format_bytes(size: float) -> str:
    """
    A size for people, e.g. ``"1.4 GiB"``.

    :param size: bytes
    """
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"
