"""Normalizing flows."""

from __future__ import annotations

from tests.architectures.describe import Architecture, floats, from_path

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
DENSITIES: tuple[Architecture, ...] = (
    from_path("cnf", "zuko.flows:CNF", floats(c=(8, 4)), features=3, context=4, hidden_features=(16,)),
    from_path("maf", "zuko.flows:MAF", floats(c=(8, 4)), features=3, context=4, transforms=2, hidden_features=(16,)),
    from_path("spline-flow", "zuko.flows:NSF", floats(c=(8, 4)), features=3, context=4, transforms=2,
        hidden_features=(16,)),
)
# fmt: on
