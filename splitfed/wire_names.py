"""Names in Flower messages, the same at both ends: of their records, and of what an error means."""

ARRAYS, CONFIG, METRICS, WIRE = "arrays", "config", "metrics", "wire"

VANISHES_AFTER = "vanishes-after"  # in the order to train: a client of a simulation is gone after so many mini-batches
VANISHED = 2001  # the error code with which it then answers; Flower's own end at a hundred
