"""The controller's CSI services: each call goes to the agent that has the volume."""
