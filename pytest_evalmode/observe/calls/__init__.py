"""What is called beside forwards: `train()`, loads, exports, optimizers, `backward()`."""
