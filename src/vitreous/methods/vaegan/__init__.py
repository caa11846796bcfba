"""VAE-GAN that sorts mixed particles."""
