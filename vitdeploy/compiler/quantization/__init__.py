"""Images -> calibration -> Q/DQ, and what it costs in accuracy."""
