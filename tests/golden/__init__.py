"""Stored numbers: of published references (`divergences.json`) and our own (`trajectories.json`, by `make golden`)."""
