"""Changes of images: one module per kind of change, and the search for the fewest steps that explain a difference."""
