"""The only layer that enters the kernel or starts a process. All of it may block: nothing here is for an event loop."""
