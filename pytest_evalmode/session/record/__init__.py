"""The record of a session: what the reports of all processes tell, and what is made of it at the end."""
