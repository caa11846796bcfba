"""What CryoGAN and the VAE-GAN share."""
