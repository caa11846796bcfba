"""Image formation: operators, CTF, shift, noise, and the samplers of poses."""
