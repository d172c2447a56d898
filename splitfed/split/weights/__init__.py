"""Weights that cross with a round: as one frame, as differences, or not at all where both ends have them."""
