"""The back's side: Flower's ServerApp, the rounds, training of the back, and the server end of the channel."""
