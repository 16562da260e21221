"""What happens in a training: its data, one step, task weighting, evaluation, the log, resuming."""
