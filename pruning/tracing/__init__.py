"""One forward pass on tensors without values, seen below autograd and typed by the rules."""
