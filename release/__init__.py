"""Makes the files of a release from a commit: `make release VERSION=...` (docs/how-to/releases.md)."""
