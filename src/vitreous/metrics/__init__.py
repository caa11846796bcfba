"""Part of vitreous; see the modules."""
