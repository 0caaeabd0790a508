"""A real Kubernetes cluster on one machine: control plane, and nodes that are namespaces with a kubelet of their own."""
