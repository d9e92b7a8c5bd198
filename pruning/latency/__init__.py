"""How long a network takes: measured, and predicted from layers that were measured."""
