"""What is written and read back: ONNX, checkpoints, weights; never a pickle."""
