"""Two maps compared, aligned, and searched for symmetry."""
