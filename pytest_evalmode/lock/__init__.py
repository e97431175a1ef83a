"""The evaluation lock: compares a run with the model, data and outputs that were validated."""
