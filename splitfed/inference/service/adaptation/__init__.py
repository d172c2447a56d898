"""Adaptation in the field: the norms of what is served learn, without labels, from images that clients kept."""
