"""The commands for what comes after training."""
