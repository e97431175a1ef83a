"""A run of pytest and its tests: it knows pytest, and never torch."""
