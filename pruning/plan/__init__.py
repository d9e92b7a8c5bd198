"""From groups to a narrowed model: plans, their cost, masks, slicing, and the proof that nothing else changed."""
