"""What is known while a nest's code is written: where each vector of lanes is, and what was computed there."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpuonnx.ir.expr import Expr


@dataclass
class Address:
    """A partial element offset: the sum so far, axes and terms that are in it, lanes that may be touched (None: all)."""

    total: Any
    axes: frozenset[int] = frozenset()
    terms: frozenset[int] = frozenset()
    mask: Any = None


@dataclass
class Scope:
    """What is known inside one loop."""

    values: dict[Expr, Any] = field(default_factory=dict)
    addresses: dict[Any, Address] = field(default_factory=dict)


@dataclass
class Place:
    """One vector of lanes: where it begins (None: no lane axis here), which lanes count, where it is along the tile's
    axis, what is computed."""

    lane: Any = None
    mask: Any = None
    tile: Any = None
    scopes: list[Scope] = field(default_factory=lambda: [Scope()])
    results: dict[Any, Any] = field(default_factory=dict)
    conditions: list[Any] = field(default_factory=list)

    def at(self, lane: Any, mask: Any) -> Place:
        return Place(lane, mask, self.tile, [*self.scopes], dict(self.results))
