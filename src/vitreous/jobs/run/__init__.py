"""One lifecycle for every job: folder, options, checkpoints, signals, progress, history."""
