"""A model's name to its module, image processor and task."""
