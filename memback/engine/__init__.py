"""The engine: tensors, the tape, and backward. No op, no planner and no report is in it."""
