"""Runs the guard on public models and public test suites, and compares what it says with a reviewed record."""
