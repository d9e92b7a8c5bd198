"""Axes: atoms, sums and products of channels, and what an equation says of them."""
