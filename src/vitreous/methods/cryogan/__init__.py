"""CryoGAN: a Wasserstein GAN whose generator is the image formation model."""
