"""Prune and fine-tune: goals, attempts, the kinds of pruning, and the ledger of it all."""
