"""Observers of a guarded window: the part of the package that works with torch."""
