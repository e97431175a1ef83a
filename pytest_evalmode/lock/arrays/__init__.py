"""Inputs or outputs as they come, batch by batch, and what differs in them when all have come."""
