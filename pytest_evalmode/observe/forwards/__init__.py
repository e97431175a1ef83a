"""Observation of forwards while a window is open."""
