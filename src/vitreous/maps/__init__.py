"""Half maps, FSC, alignment, sharpening and symmetry of 3D maps."""
