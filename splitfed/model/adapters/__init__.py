"""What of a model is trained where most of it stays as it is: some of its own numbers, or small additions to it."""
