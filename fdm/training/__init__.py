"""How a denoiser is learnt: the loop, its state and processes, and the objectives."""
