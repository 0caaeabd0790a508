"""VolumeRollback: a claim goes back to one of its own snapshots."""
