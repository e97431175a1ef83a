"""What the code of a model can do: draw random numbers, read `training`, write tensors. It is read, never run."""
