"""Observers of a guarded window: the only part of the package that knows torch."""
