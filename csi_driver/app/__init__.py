"""The composition roots: what an agent and a controller are put together from. Every dependency is chosen here."""
