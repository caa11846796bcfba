"""Ab initio reconstruction by CryoGAN."""
