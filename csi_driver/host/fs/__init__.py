"""File systems: made, mounted, measured, checked."""
