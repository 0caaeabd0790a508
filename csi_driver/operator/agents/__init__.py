"""Agents as Kubernetes knows them: where they are, what they have, and which nodes are gone."""
