"""The weights that cross with a round: counted, aggregated, as differences, once."""
