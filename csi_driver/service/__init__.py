"""The promises: idempotency, locks, limits, order. Knows the backend protocol, never a backend, never gRPC."""
