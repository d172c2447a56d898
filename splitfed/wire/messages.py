"""Names in Flower messages, the same at both ends: of their records, and of what an error means."""

ARRAYS, CONFIG, METRICS, WIRE = "arrays", "config", "metrics", "wire"
WEIGHTS, ONCE = "weights", "once"  # in the record `wire`: a round's weights, and what is sent to each client once

VANISHES_AFTER = "vanishes-after"  # in the order to train: a client of a simulation is gone after so many mini-batches
# Error codes of ours; Flower's own end at a hundred.
VANISHED = 2001  # a client that vanishes as it was told to
LACKING = 2002  # a client that has not, or not any more, what the server's message builds on
