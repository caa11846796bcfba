"""Joint refinement of poses and map by gradient."""
