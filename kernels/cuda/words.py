"""The int64 words that a CUDA kernel gets, and how an access turns coordinates into an element offset."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpuonnx.ir.affine import Affine, affine
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, postorder
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Layout, Ref

SYMBOL = "KERNEL_SYMBOL"


class Words:
    """Every use gets a word of its own, so that a text never depends on two sizes being equal by chance."""

    def __init__(self) -> None:
        self.args: list[Arg] = []

    def word(self, arg: Arg) -> str:
        self.args.append(arg)
        return f"a{len(self.args) - 1}"

    def stride(self, d: Dim) -> str:
        """A stride or coefficient; 0 and 1 are facts of the text."""
        return str(d) if isinstance(d, int) and d in (0, 1) else self.word(d)

    def declared(self, first: int = 0, last: int | None = None, source: str = "args") -> str:
        """C++ declarations of words `first` to `last` (all of them), from the array `source`."""
        return "".join(f"  const ix a{k} = {source}[{k}];\n" for k in range(first, len(self.args) if last is None else last))


@dataclass(frozen=True)
class Term:
    """An index that is not affine: its stride, the size of its axis, whether it comes from data and must be checked."""

    index: Expr
    stride: Dim
    size: Dim
    from_data: bool


@dataclass(frozen=True)
class Pattern:
    """offset + sum(strides[axis] * index(axis)) + sum(term.stride * term.index), in elements."""

    offset: Dim
    strides: Mapping[int, Dim]
    terms: tuple[Term, ...] = ()


def pattern(layout: Layout, indices: Sequence[Expr]) -> Pattern:
    total, terms = Affine(), []
    for e, stride, extent in zip(indices, layout.strides, layout.shape, strict=True):
        form = affine(e)
        if form is None:
            terms.append(Term(e, stride, extent, any(x.op in ("load", "folded") for x in postorder((e,)))))
        else:
            total = total.plus(form.scaled(stride))
    return Pattern(total.offset, total.terms, tuple(terms))


@dataclass
class Access:
    """One load or store in a text: `base` names its pointer word, `parts` are (coordinate, stride) texts."""

    stored: str
    base: str
    parts: list[tuple[str, str]]
    terms: list[tuple[Term, str, str]] = field(default_factory=list)

    def affine_offset(self) -> str:
        sums = [c if s == "1" else f"{c} * {s}" for c, s in self.parts if s != "0" and c != "0"]
        return " + ".join(sums) or "0"


def access(words: Words, ref: Ref, layout: Layout, indices: Sequence[Expr], coordinates: Mapping[int, str]) -> Access:
    """An access by the coordinates of the axes themselves."""
    found = pattern(layout, indices)
    parts = [(coordinates[axis], words.stride(s)) for axis, s in sorted(found.strides.items())]
    return Access(layout.dtype, pointer(words, ref, layout.dtype, found.offset), parts, term_words(words, found.terms))


def pointer(words: Words, ref: Ref, stored: str, offset: Dim = 0) -> str:
    """The word of an address, `offset` elements further on."""
    return words.word(Ref(ref.space, ref.number, ref.offset + offset * size(stored)))


def term_words(words: Words, terms: Sequence[Term]) -> list[tuple[Term, str, str]]:
    return [(t, words.stride(t.stride), words.word(t.size) if t.from_data else "") for t in terms]
