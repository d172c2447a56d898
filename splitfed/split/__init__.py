"""The crossing between client and server: what is packed, what is expected, and what both sides make of it."""
