"""Call "gemm_integer": exact int32 sums of (A - za)(B - zb) of bytes, by tensor cores; zero points are scalars or one a row of A, a column of B."""
from __future__ import annotations

from gpuonnx.ir.dims import Dim
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.gemm import BIG, SMALL, axes_of, flag, matrices, multiply, reader, tensor
from gpuonnx.kernels.cuda.product import Axes, Text, Tile, choose, launches, lines

BYTES = ("i8", "u8")
MERGED = "a zero point of every row of A, and batch entries that are rows too"


def supports(call: Spec) -> str | None:
    a, b = call.inputs[0], call.inputs[1]
    if a is None or b is None or a.dtype not in BYTES or b.dtype not in BYTES or len(a.shape) < 2 or len(b.shape) < 2:
        return "gemm_integer takes two matrices of bytes"
    zero = zero_point(call, 2)
    return MERGED if zero is not None and zero.shape and len(axes_of(call).rows) > 1 else None


def zero_point(call: Spec, number: int) -> Layout | None:
    return call.inputs[number] if len(call.inputs) > number else None


def byte_tiles(left: Layout, right: Layout) -> tuple[Tile, Tile]:
    mma = f"MmaBytes<{TAGS[left.dtype]}, {TAGS[right.dtype]}>"
    big, small = (tensor(mma, f"{left.dtype}{right.dtype}", shape, 1, (True, True), 1) for shape in (BIG, SMALL))
    return big, small


Side = tuple[Layout, Layout | None, Ref]


def zeros(text: Text, left: Side, right: Side, group: tuple[str, Dim] | None = None) -> None:
    """Declare `zeros`: for each side its operand, its zero points and where they are; `group` offsets those of the left side."""
    words: list[str] = []
    for k, (_, zero, ref) in enumerate((left, right)):
        if zero is None:
            words += ["0", "0"]
            continue
        many = len(zero.shape) > 0
        words += [text.address(ref, zero, [group] if group and k == 0 and many else []), text.words.stride(zero.strides[0] if many else 0)]
    flags = ", ".join(flag(zero is not None) for _, zero, _ in (left, right))
    text.line(f"ByteZeros<{TAGS[left[0].dtype]}, {TAGS[right[0].dtype]}, {flags}> zeros({', '.join(words)});")


def build(call: Spec) -> Build:
    a, b = call.inputs[0], call.inputs[1]
    assert a is not None and b is not None
    axes: Axes = axes_of(call)
    big, small = byte_tiles(a, b)
    copy = lines(call.constants[1].swapaxes(-1, -2)) if 1 in call.constants else None

    def body(text: Text, tile: Tile) -> None:
        matrices(text, call, copy)
        zeros(text, (a, zero_point(call, 2), Ref("in", 2)), (b, zero_point(call, 3), Ref("in", 3)))
        multiply(text, tile, reader(tile, 0, False), reader(tile, 1, False))
    return launches(call, axes, a.shape[-1], "i32", choose(axes, a.shape[-1], big, small, None), "gemm.cu", body,
                    copy.packed if copy else ())
