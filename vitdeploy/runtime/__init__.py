"""Run a bundle: `load(path).predict(image)`."""
