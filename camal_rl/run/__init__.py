"""A run's surroundings in training: folder, machine, threads, cells of a matrix."""
