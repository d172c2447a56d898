"""Reducers: they work inside the autograd graph and change what is sent."""
