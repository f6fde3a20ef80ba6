"""What carries a bundle beyond one process: the Hugging Face Hub, NVIDIA Triton, Ray."""
