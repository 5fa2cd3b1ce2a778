"""Sound as tensors, as pictures and as files."""
