"""A run's directory: checkpoints (the only file that says orbax), log, curves."""
