"""ONNX Runtime, on the CPU or through its CUDA, TensorRT or OpenVINO provider."""
