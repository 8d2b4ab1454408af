"""Every export of every family, run at each of its sizes and held against the framework's own answer."""
from __future__ import annotations

import pytest
from exports import matrix


def collected() -> list[object]:
    found: list[object] = []
    for family in matrix.FAMILIES:
        reason = family.missing()
        if reason:
            found.append(pytest.param(family, None, marks=pytest.mark.skip(reason=reason), id=family.name))
        else:
            found.extend(pytest.param(family, case, id=f"{family.name}-{case.name}") for case in matrix.cases(family))
    return found


@pytest.mark.parametrize(("family", "case"), collected())
def test_export(family: matrix.Family, case: matrix.Case, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("world", family.world))
    try:
        export = matrix.exported(family, case)
    except matrix.NotExported as refusal:
        request.node.user_properties.append(("refused", str(refusal)))
        pytest.skip(f"{case.name} is not exported: {refusal}")
    matrix.check(case, export)
