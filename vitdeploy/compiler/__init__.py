"""Makes a bundle from a checkpoint: export, calibrate, quantise, build engines."""
