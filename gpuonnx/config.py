"""What the environment says: where the cache lies, how many threads this process may use."""
from __future__ import annotations

import os
from pathlib import Path

THREADS_VARIABLE, CACHE_VARIABLE, LIMIT_VARIABLE = "GPUONNX_THREADS", "GPUONNX_CACHE_DIR", "GPUONNX_CACHE_LIMIT"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def cache_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """`given`, else GPUONNX_CACHE_DIR, else the user's cache directory."""
    if given is not None:
        return Path(given).expanduser()
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir
    return Path(user_cache_dir("gpuonnx", appauthor=False))


def cache_limit() -> int:
    """Bytes that the cache may hold: GPUONNX_CACHE_LIMIT (`500M`, `20G`), else 10 GiB. Raises InputError for what is no size."""
    chosen = os.environ.get(LIMIT_VARIABLE, "10G").strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (chosen, "") if chosen[-1:].isdigit() else (chosen[:-1].strip(), chosen[-1:])
    if not number.isdigit() or unit not in UNITS:
        from gpuonnx.errors import InputError
        raise InputError(f"{LIMIT_VARIABLE}={os.environ[LIMIT_VARIABLE]!r} is no size: write a number of bytes, or one with K, M, G or T behind it")
    return int(number) * UNITS[unit]


def default_threads() -> int:
    """GPUONNX_THREADS, else the physical cores this process may run on, at most its cgroup's quota of CPU time."""
    chosen = os.environ.get(THREADS_VARIABLE, "")
    if chosen.isdigit() and int(chosen):
        return int(chosen)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    quota = cgroup_quota()
    cores = physical_cores(cpus)
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))


def physical_cores(cpus: set[int], system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores behind logical `cpus`; hyper-threads of one core count once where the system tells."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((system / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of time that the tightest control group around this process grants, None without a limit."""
    found = []
    for line in _lines(own):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root if not controllers else root / "cpu"
        group = folder / path.strip("/")
        for place in (group, *group.parents):
            found.append(_limit(place))
            if place == folder:
                break
    limits = [limit for limit in found if limit is not None]
    return min(limits) if limits else None


def _limit(place: Path) -> float | None:
    """The limit of one group: version 2 has cpu.max, version 1 a quota (-1 for none) and a period."""
    words = " ".join(_lines(place / "cpu.max")).split()
    if len(words) != 2:
        words = _lines(place / "cpu.cfs_quota_us") + _lines(place / "cpu.cfs_period_us")
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
