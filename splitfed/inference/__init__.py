"""A run's model at work: answers for images, exits on the way, and what is sent where they are not sure."""
