"""Show or clear the cache of compiled kernels."""
from __future__ import annotations

import argparse
import json

NAMES = {"kernels": "compiled kernels", "blobs": "programs and packed weights"}


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="show", choices=("show", "clear"), help="(default: show)")
    parser.add_argument("--cache-dir", metavar="DIR", help="another cache than the one GPUONNX_CACHE_DIR or the system names")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    from gpuonnx.codegen.cache import KernelCache
    cache = KernelCache(args.cache_dir)
    found = {kind: {"entries": entries, "bytes": size} for kind, (entries, size) in cache.sizes().items()}
    freed = cache.clear() if args.action == "clear" else None
    if args.json:
        print(json.dumps({"folder": str(cache.folder), "freed": freed, **found}))
        return 0
    if freed is not None:
        print(f"{cache.folder}: {size_of(freed)} freed")
        return 0
    print(cache.folder)
    for kind, about in found.items():
        print(f"  {NAMES[kind]}: {about['entries']} entries, {size_of(about['bytes'])}")
    return 0


def size_of(count: int) -> str:
    """Bytes in words."""
    number, unit = float(count), "bytes"
    for bigger in ("KiB", "MiB", "GiB"):
        if number < 1024:
            break
        number, unit = number / 1024, bigger
    return f"{count} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
