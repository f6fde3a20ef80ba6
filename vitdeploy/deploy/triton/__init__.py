"""A bundle in NVIDIA Triton: `repository` writes what a server starts from, `model` runs inside it."""
