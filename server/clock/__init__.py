"""Simulated time: how long a simulated round would have lasted, by the frames that crossed and what was computed."""
