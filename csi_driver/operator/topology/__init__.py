"""Pods are led to the node that has their volume's source."""
