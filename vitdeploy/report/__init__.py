"""What a benchmark found, as data, and its renderers."""
