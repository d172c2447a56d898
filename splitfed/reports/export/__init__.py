"""A run's model for timm, with its card."""
