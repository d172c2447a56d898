"""Names of the records in Flower messages, the same at both ends."""

ARRAYS, CONFIG, METRICS, WIRE = "arrays", "config", "metrics", "wire"
