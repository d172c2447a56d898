"""A deployment: Flower's processes as ours, keys and certificates, and what is wrong on the way to a server."""
