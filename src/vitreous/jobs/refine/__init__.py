"""Initial model and refinement of poses and map."""
