"""INT8 kernels of our own for CPUs."""
