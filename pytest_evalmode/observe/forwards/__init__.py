"""What is called while a window is open."""
