"""Reducers that act on samples."""
