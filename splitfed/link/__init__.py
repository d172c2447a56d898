"""What a byte costs in time: the links of simulated clients, and a clock that goes by them."""
