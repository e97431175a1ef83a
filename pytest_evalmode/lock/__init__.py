"""The evaluation lock: what was validated, and how this run differs from it."""
