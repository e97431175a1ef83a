"""Densities: normalising flows."""

from __future__ import annotations

from tests.architectures.describe import Architecture, floats, made

# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
DENSITIES: tuple[Architecture, ...] = (
    made("cnf", "zuko.flows:CNF", floats(c=(8, 4)), features=3, context=4, hidden_features=(16,)),
    made("maf", "zuko.flows:MAF", floats(c=(8, 4)), features=3, context=4, transforms=2, hidden_features=(16,)),
    made("spline-flow", "zuko.flows:NSF", floats(c=(8, 4)), features=3, context=4, transforms=2, hidden_features=(16,)),
)
# fmt: on
