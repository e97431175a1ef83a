"""Causes of changed numbers: units, functions, statistics, moved axes. For tables, series, metrics and images."""

from pytest_evalmode.lock.inputs.numbers.positions import MOVES
from pytest_evalmode.lock.inputs.numbers.statistics import COLUMNS, STATISTICS
from pytest_evalmode.lock.inputs.numbers.units import POINTWISE

CAUSES = (*MOVES, *POINTWISE, *STATISTICS, *COLUMNS)

__all__ = ["CAUSES", "POINTWISE", "STATISTICS"]
