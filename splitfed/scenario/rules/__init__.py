"""The rules between keys and sections of a scenario, by subject; `registry` has the list of all."""
