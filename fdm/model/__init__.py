"""What removes it: the denoiser and its contract, networks, exact denoisers, checkpoints, released networks."""
