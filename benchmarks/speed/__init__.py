"""What time a plan's share of the MACs really takes, measured in turns with the network that it came from."""
