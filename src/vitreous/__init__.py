"""vitreous: from noisy cryo-EM particle images to 3D maps, without being told the poses."""

__version__ = "0.1.0"
