"""The device mapper, by its ioctls: no process is started, and a device is known by its uuid."""
