"""The front's side: Flower's ClientApp, local training, and the client end of the channel."""
