"""What will go wrong with a graph on TensorRT, and where: one table of rules, for any file and for each build."""
