"""Quantised ONNX files: which layers, on which scales, and how far the answers are from those of the float file."""
