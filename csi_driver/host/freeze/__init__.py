"""Freeze, clone, thaw: a snapshot of mounted file systems."""
