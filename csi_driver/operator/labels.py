"""Labels that more than one reconciler reads."""

KEEP_LABEL = "tidemark.dev/keep"
"""On a snapshot or group snapshot, by a person, with any value: neither a schedule nor a rollback deletes it."""
