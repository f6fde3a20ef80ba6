"""What runs a graph: one folder a backend, with its runner and, what others know of it in `spec.py`."""
