"""The cost of guarding, relative to one read of the weights and to a check written by hand."""
