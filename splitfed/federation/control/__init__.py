"""Controllers: what chooses, round by round, at which operating point a client sends, so that a target holds."""
