"""LVM thin as a backend."""
