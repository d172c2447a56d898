"""What the reducer makes of one mini-batch of a run."""
