"""Clients of agents."""
