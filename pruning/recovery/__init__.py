"""What can be brought back without labels: layers refitted, means folded in, batch norms measured anew."""
