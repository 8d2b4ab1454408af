"""PyTorch networks: `@network` exports what the function gives with both exporters, axes that differ among its sets free."""
from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from exports import matrix

EXPORTERS = ("torchscript", "dynamo")
torch.backends.mha.set_fastpath_enabled(False)
MOST_TRIES = {"torchscript": 100, "dynamo": 7}
INDEX_ADD = "it writes index_add as ScatterElements with no reduction"
Made = tuple[torch.nn.Module, list[Any]]


def network(*, rtol: float = 1e-4, atol: float = 1e-5, exporters: Sequence[str] = EXPORTERS, opset: int | None = None,
            differs: Mapping[str, str] | None = None, one_size: Sequence[str] = (), broken: Mapping[str, str] | None = None, training: bool = False) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Declare a network: a function that gives a module and a list of argument tuples (or single tensors), one a size.

    differs: by exporter, why its file does not mean what the network does; ONNX Runtime's answer is the expected one then.
    one_size: exporters that write sizes down as constants here, so that the first set alone is run.
    broken: by exporter, why no runtime runs its file.
    training: in training mode: batches' own statistics, dropout (whose network must say itself whether it dropped well)."""
    def declare(make: Callable[[], Made]) -> Callable[[], Made]:
        for exporter in exporters:
            def build(exporter: str = exporter) -> matrix.Export:
                return export(first(make) if exporter in one_size else make, exporter, opset, rtol, atol, training)
            matrix.add(make.__module__, matrix.Case(exporter, f"{make.__name__}-{exporter}", build, (differs or {}).get(exporter), (broken or {}).get(exporter)))
        return make
    return declare


def first(make: Callable[[], Made]) -> Callable[[], Made]:
    """The network at its first size only."""
    def one() -> Made:
        module, sets = make()
        return module, sets[:1]
    return one


def export(make: Callable[[], Made], exporter: str, opset: int | None, rtol: float, atol: float, training: bool = False) -> matrix.Export:
    torch.manual_seed(1)
    module, sets = make()
    sets = [args if isinstance(args, tuple) else (args,) for args in sets]
    picked = Picked(module).train(training)
    with torch.no_grad():
        outputs = [[array(t) for t in picked(*copies(args))] for args in sets]
        model, kept, refusals = some_exported(picked, sets, exporter, opset, len(outputs[0]))
    import onnx
    names = [i.name for i in onnx.load_from_string(model).graph.input]
    leaves = [[array(t) for t in flat(args)] for args in sets]
    if len(names) < len(leaves[0]) and all(name.startswith("input_") for name in names):
        leaves = [[leaf[int(name[6:])] for name in names] for leaf in leaves]
    if len(names) != len(leaves[0]):
        raise matrix.NotExported(f"the file has inputs {names}, the network takes {len(leaves[0])}")
    given = [dict(zip(names, leaf, strict=True)) for leaf in leaves]
    return matrix.Export(model, given, [[row[k] for k in kept] for row in outputs], rtol, atol, refusals)


def some_exported(picked: Picked, sets: Sequence[tuple[Any, ...]], exporter: str, opset: int | None, count: int) -> tuple[bytes, list[int], list[str]]:
    """The model of all outputs, or of those that the exporter takes: halves are tried apart. Raises NotExported where none is."""
    refusals: list[str] = []
    tries = iter(range(MOST_TRIES[exporter]))

    def attempt(kept: list[int]) -> bytes | None:
        if next(tries, None) is None:
            return None
        picked.kept = kept
        try:
            return exported(picked, sets, exporter, opset)
        except Exception as refusal:
            if len(kept) == 1:
                refusals.append(f"output {kept[0]}: {matrix.reason(refusal)}")
            elif count == len(kept):
                refusals.append(matrix.reason(refusal))
            return None

    def good(part: list[int]) -> list[int]:
        if attempt(part) is not None:
            return part
        return good(part[:len(part) // 2]) + good(part[len(part) // 2:]) if len(part) > 1 else []

    everything = list(range(count))
    model = attempt(everything)
    if model is not None:
        return model, everything, []
    kept = good(everything[:count // 2]) + good(everything[count // 2:]) if count > 1 else []
    tries = iter(range(1))
    model = attempt(kept) if kept else None
    if model is None:
        raise matrix.NotExported(refusals[0])
    return model, kept, refusals[1:] or refusals


class Picked(torch.nn.Module):
    """A network whose outputs come as one flat list, or only those numbered in `kept`."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.kept: list[int] | None = None

    def forward(self, *args: Any) -> Any:
        made = flat(self.network(*args))
        return tuple(made if self.kept is None else [made[k] for k in self.kept])


def exported(module: torch.nn.Module, sets: Sequence[tuple[Any, ...]], exporter: str, opset: int | None) -> bytes:
    leaves = [flat(args) for args in sets]
    names = [f"input_{k}" for k in range(len(leaves[0]))]
    free = [[axis for axis in range(leaf.dim()) if len({given[k].shape[axis] for given in leaves}) > 1] for k, leaf in enumerate(leaves[0])]
    args = copies(sets[0])
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            if exporter == "torchscript":
                axes = {name: {a: f"{name}_{a}" for a in dims} for name, dims in zip(names, free, strict=True) if dims}
                file = io.BytesIO()
                torch.onnx.export(module, args, file, input_names=names, dynamic_axes=axes, opset_version=opset, dynamo=False,
                                  training=torch.onnx.TrainingMode.TRAINING if module.training else torch.onnx.TrainingMode.EVAL)
                return file.getvalue()
            numbers = iter(free)
            shapes = shaped(args, lambda _: {a: torch.export.Dim.DYNAMIC for a in next(numbers)} or None) if any(free) else None
            program = torch.onnx.export(module, args, dynamic_shapes=None if shapes is None else (shapes,), opset_version=opset, dynamo=True, verbose=False)
            return program.model_proto.SerializeToString()
    finally:
        logging.disable(logging.NOTSET)


def shaped(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The tree of arguments with `leaf` of each tensor in its place."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(shaped(x, leaf) for x in tree)
    if isinstance(tree, dict):
        return {k: shaped(v, leaf) for k, v in tree.items()}
    return leaf(tree)


def copies(tree: Any) -> Any:
    return shaped(tree, lambda t: t.clone() if isinstance(t, torch.Tensor) else t)


def flat(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and maps, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for x in tree for t in flat(x)] if isinstance(tree, (tuple, list)) else []


def array(t: torch.Tensor) -> np.ndarray:
    if t.dtype is torch.bfloat16:
        import ml_dtypes
        return t.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return t.detach().cpu().resolve_conj().numpy()


def t(*shape: int) -> torch.Tensor:
    """Normal values."""
    return torch.randn(*shape)


def ints(high: int, *shape: int) -> torch.Tensor:
    """int64 below `high`."""
    return torch.randint(0, high, shape)


class Fn(torch.nn.Module):
    """A function as a module; `parts` are sub-modules that it gets first."""

    def __init__(self, function: Callable[..., Any], *parts: torch.nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, *args: Any) -> Any:
        return self.function(*self.parts, *args)
