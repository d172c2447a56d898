"""What a run does with its controller: foretells what each point would take, asks, and keeps account."""
