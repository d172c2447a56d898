"""What shows a run while it goes."""
