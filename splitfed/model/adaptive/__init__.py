"""What the class token attends to; and training that goes by it: which blocks train, on which tokens."""
