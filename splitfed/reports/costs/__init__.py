"""What a scenario will cost, before it runs."""
