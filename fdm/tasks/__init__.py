"""What a denoiser is used for."""
