"""Observers of calls other than forwards: `train()`, loads, exports, optimizer steps, `backward()`."""
