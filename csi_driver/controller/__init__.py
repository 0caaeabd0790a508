"""The controller: passes CSI calls on to agents, and reconciles what Kubernetes asks for."""
