"""How much each group gives, and in how many steps: plans that meet a target."""
