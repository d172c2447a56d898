"""Reducers that act on single values."""
