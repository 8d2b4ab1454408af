"""Every definition's signature against the schemas of the standard, over the whole range of versions that it answers for."""
from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from onnx import defs, helper

from gpuonnx.ops import registry
from gpuonnx.ops.registry import Definition

registry.load_all()
STANDARD = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")
SCHEMAS: dict[tuple[str, str], list[Any]] = {}
for _schema in defs.get_all_schemas_with_history():
    SCHEMAS.setdefault((_schema.domain, _schema.name), []).append(_schema)
OURS = [d for known in registry.DEFINITIONS.values() for d in known if d.domain in STANDARD and d.function.__module__.startswith("gpuonnx.")]
BEYOND = [d for d in OURS if d.function.__module__ == "gpuonnx.ops.beyond"]
EVERY = [d for d in OURS if d not in BEYOND]


def schemas_of(definition: Definition) -> list[Any]:
    """The versions of the operator that this definition answers for."""
    versions = sorted(SCHEMAS.get((definition.domain, definition.name), []), key=lambda s: s.since_version)
    later = [d.since for d in registry.DEFINITIONS[definition.domain, definition.name] if d.since > definition.since]
    return [s for s in versions if definition.since <= s.since_version < min(later, default=math.inf)]


def parameters(definition: Definition, keyword: bool) -> dict[str, inspect.Parameter]:
    found = inspect.signature(definition.function).parameters
    return {n: p for n, p in found.items() if (p.kind is p.KEYWORD_ONLY) == keyword and n not in registry.RESERVED}


def same(ours: Any, theirs: Any) -> bool:
    """Equal; GRU 1 spells its default direction "foward"."""
    if isinstance(theirs, bytes):
        theirs = theirs.decode().replace("foward", "forward")
    if isinstance(theirs, (list, tuple)):
        return ours is not None and len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, float):
        return isinstance(ours, (int, float)) and math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def test_what_is_beyond_the_standard_is_not_in_it() -> None:
    assert BEYOND and not [d.name for d in BEYOND if (d.domain, d.name) in SCHEMAS]


@pytest.mark.parametrize("definition", EVERY, ids=lambda d: f"{d.domain or 'ai.onnx'}.{d.name}-{d.since}")
def test_signature(definition: Definition) -> None:
    schemas = schemas_of(definition)
    assert schemas and schemas[0].since_version == definition.since, f"no version {definition.since} in the standard"
    check_attributes(definition, schemas)
    check_inputs(definition, schemas)


def check_attributes(definition: Definition, schemas: list[Any]) -> None:
    ours = parameters(definition, keyword=True)
    theirs = {name for s in schemas for name in s.attributes} - registry.INERT
    assert set(ours) == theirs, "attributes"
    for schema in schemas:
        for name, attribute in schema.attributes.items():
            if name in registry.INERT:
                continue
            default = ours[name].default
            always = all(name in s.attributes and s.attributes[name].required for s in schemas)
            if attribute.required:
                assert (default is inspect.Parameter.empty) == always, f"{name} is required"
            elif attribute.default_value.type:
                assert same(default, helper.get_attribute_value(attribute.default_value)), f"the default of {name}"
            else:
                assert default is not inspect.Parameter.empty, f"{name} is optional"


def check_inputs(definition: Definition, schemas: list[Any]) -> None:
    ours = parameters(definition, keyword=False)
    fixed = [p for p in ours.values() if p.kind is not p.VAR_POSITIONAL]
    option = defs.OpSchema.FormalParameterOption
    for schema in schemas:
        theirs = list(schema.inputs)
        variadic = bool(theirs) and theirs[-1].option == option.Variadic
        assert variadic <= definition.variadic, "variadic"
        theirs = theirs[:-1] if variadic else theirs
        assert len(theirs) <= len(fixed) or definition.variadic, f"inputs of version {schema.since_version}"
        for parameter, formal in zip(fixed, theirs, strict=False):
            if formal.option == option.Optional:
                assert parameter.default is None, f"{formal.name} is optional"
    most = max(len(s.inputs) for s in schemas)
    assert len(fixed) <= most or any(p.default is None for p in fixed[most:]), "more inputs than the standard has"
    needed = min(s.min_input for s in schemas)
    assert sum(p.default is inspect.Parameter.empty for p in fixed) <= max(needed, 0), "required inputs"


def test_definitions_do_not_overlap() -> None:
    for known in registry.DEFINITIONS.values():
        versions = [d.since for d in known]
        assert len(versions) == len(set(versions))
