"""The Fast Diffusion Model (arXiv 2306.06991), rebuilt as a study that can be rerun."""
