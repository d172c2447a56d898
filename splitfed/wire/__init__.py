"""What crosses between client and server as bytes: frames, messages, and the channel that carries them."""
