"""The frozen input head (paper 3.2): 3D VAE, text encoder, vision tower. Never trained."""
