"""Arrays of inputs and outputs: gathered batch by batch, stored in part, and compared with the locked ones."""
