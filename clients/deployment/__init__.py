"""A client on a machine of its own."""
