"""The free memory of the host. Nothing here imports torch."""

import re
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Host memory that can be allocated, within the limit of the container; None if unknown."""
    limits = []
    if (free := _find(r"MemAvailable:\s+(\d+) kB", _MEMORY)) is not None:
        limits.append(free * 1024)
    limit = _find(r"(\d+)", _CGROUP / "memory.max")  # "max" if there is none
    if limit is not None:
        limits.append(max(limit - (_find(r"anon (\d+)", _CGROUP / "memory.stat") or 0), 0))
    return min(limits, default=None)


def _find(pattern: str, file: Path) -> int | None:
    try:
        match = re.search(pattern, file.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(match[1]) if match else None
