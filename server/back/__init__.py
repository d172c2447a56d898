"""The split server: who trains the back, with what, and in which order."""
