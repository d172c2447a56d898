"""Reducers that act on tokens."""
