"""What a disk, a snapshot and a pool are, and every decision about them. Pure: no I/O, no clock, no kernel."""
