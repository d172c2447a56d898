"""What accuracy costs at inference: as a table, as CSV, and drawn."""
