"""What code, graphs and the stack say."""
