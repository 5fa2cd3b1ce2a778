"""The diffusion process as pure functions, and the one loop that samples with them."""
