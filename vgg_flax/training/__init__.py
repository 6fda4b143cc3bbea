"""The state, the step, the loop."""
