"""What is written and read back, whole or not at all: ONNX, checkpoints, weights; never a pickle."""
