"""LVM: its commands, the configuration that they get, what they report, and the records that are kept in its tags."""
