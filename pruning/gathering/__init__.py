"""Gatherers: each adds up, batch by batch, what some criteria need to know; none keeps the batches."""
