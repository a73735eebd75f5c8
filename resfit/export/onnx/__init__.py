"""ONNX files: a writer of JAX programs as ONNX, their quantization, and the model that onnxruntime runs."""
