"""Selects for a PVC with a data source the node that has this source, so that its pod runs there."""
