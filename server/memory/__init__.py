"""What the server keeps of smashed data, and how the back is trained on it."""
