"""Where images come from: folders, tables, the Hub, or memory; their labels, and whether they are the same."""
