"""2D classification and class averages."""
