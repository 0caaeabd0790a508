"""What the controller keeps true in the cluster: rollbacks, schedules, pins, orphans. Level-triggered, one leader."""
