"""The body of each stage, under the stage's name; `prune` and `measurements` are in `loop`, `report` in `reporting`."""
