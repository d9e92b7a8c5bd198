"""Training: epochs, recipes, distillation, and penalties that bring channels to zero."""
