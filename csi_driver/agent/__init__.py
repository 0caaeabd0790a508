"""The agent: serves the pools of its node to the kubelet, to controllers and to the command line."""
