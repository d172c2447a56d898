"""Who is there in a round, and how what clients trained is aggregated."""
