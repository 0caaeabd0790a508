"""The CSI services of an agent."""
