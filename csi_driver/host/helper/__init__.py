"""Helper processes: what may hang in the kernel runs in a child that can be killed."""
