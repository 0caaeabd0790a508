"""Certificates of agents, controllers and the webhook: made, renewed and rotated."""
