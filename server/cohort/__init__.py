"""The clients of a round: who they are, what they are sent, what they answer."""
