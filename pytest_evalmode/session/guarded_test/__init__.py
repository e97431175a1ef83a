"""One guarded test, from its setup to its teardown."""
