"""What only tells: consoles, curves, tables, pictures, estimates. Nothing below imports it."""
