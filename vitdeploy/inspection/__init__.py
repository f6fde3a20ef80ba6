"""What is in a bundle, a graph, an engine."""
