"""What forms answer, compared: paired accuracy, its statistics, and what changed."""
