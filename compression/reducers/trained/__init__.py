"""Reducers with layers of their own."""
