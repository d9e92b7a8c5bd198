"""Which channels go together, and how a model loses them: groups, plans, narrowing, and the proof."""
