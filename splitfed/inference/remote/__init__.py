"""Answers for images with a server's help: the front here, the back there."""
