"""The evaluation lock: what was validated is recorded, and a run that differs is told how."""
