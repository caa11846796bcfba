"""A page that shows runs while they run."""
