"""The results of a session: collected from all processes, then written to files and to the terminal."""
