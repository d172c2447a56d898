"""What a scenario can name, told from the classes that read it, and the JSON schemas of its files."""
