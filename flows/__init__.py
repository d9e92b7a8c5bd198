"""What runs, in which order: one file per stage, and `compress` for all of them."""
