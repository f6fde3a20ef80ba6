"""Checkpoint -> traced and checked graph."""
