"""Parameters of which a covering set runs each time, and the whole product where `make shows` runs."""

from collections.abc import Collection, Mapping
from itertools import product

import pytest


def each_time(cases: Mapping[str, object], kept: Collection[str]) -> list:
    """Returns pytest's parameters of all cases, by id: a tuple is several. Those that are not in `kept` are `shows`."""
    assert set(kept) <= cases.keys(), f"no such case: {sorted(set(kept) - cases.keys())}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), id=name, marks=marks)
        for name, case in cases.items()
        for marks in ([] if name in kept else [pytest.mark.shows],)
    ]


def by_type(strategies) -> dict[str, object]:
    """Returns strategies by their names."""
    return {type(strategy).__name__: strategy for strategy in strategies}


def products(*axes: Mapping[str, object]) -> dict[str, object]:
    """Returns every combination of the axes' values, by their ids in a row."""
    return {
        "-".join(names): values for names, values in zip(product(*axes), product(*(axis.values() for axis in axes)))
    }
