"""Pure wire protocol: bytes to message types and back. No sockets, no clock, no processes."""
