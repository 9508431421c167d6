"""What to change so that a step fits a machine."""
