"""One package for each method of the field."""
