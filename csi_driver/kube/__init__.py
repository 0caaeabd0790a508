"""The Kubernetes API as the controller needs it; the only code that imports the Kubernetes client."""
