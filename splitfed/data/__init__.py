"""Images: where they come from, who holds which, and how they become mini-batches."""
