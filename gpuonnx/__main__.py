"""`gpuonnx` and `python -m gpuonnx`."""
from __future__ import annotations

import sys

from gpuonnx.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
