"""The back as a service: answers what clients ask, many at once."""
