"""The models of a window: which there are, what they are called, what became of them."""
