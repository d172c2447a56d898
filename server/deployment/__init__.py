"""The server on a machine of its own."""
