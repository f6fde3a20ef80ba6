"""A checkpoint in PyTorch: the baseline that the forms of a bundle are compared with."""
