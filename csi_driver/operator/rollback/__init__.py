"""VolumeRollback: a volume is rolled back to one of its own snapshots."""
