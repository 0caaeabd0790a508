"""What a command ends with if it cannot do what was asked."""


class Failure(Exception):
    """Printed on stderr as one sentence that ends with the next step; the exit code is 1."""
