"""What a window saw: everything that knows torch."""
