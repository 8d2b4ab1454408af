"""The CPU's renderer of loop nests."""
from gpuonnx.codegen.plain import build, supports

__all__ = ["build", "supports"]
