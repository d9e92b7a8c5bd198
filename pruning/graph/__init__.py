"""From a model's forward pass to channel groups: axes, operators' rules, the trace, what belongs together."""
