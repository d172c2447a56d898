"""How the training images are dealt to the clients."""
