"""One contest between ways to choose what goes: the same baseline, data, targets and fine-tuning budget for all."""
