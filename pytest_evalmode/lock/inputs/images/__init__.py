"""What may have been done to images: a cause a file, and the search for the fewest that together explain them."""
