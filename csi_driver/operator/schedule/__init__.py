"""SnapshotSchedule: snapshots by cron or period, and their retention."""
