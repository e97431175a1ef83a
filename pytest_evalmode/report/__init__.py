"""The failure text, and the reports of a session as text, JSON and HTML."""
