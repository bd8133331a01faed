"""What a run needs around its training: folder, machine, threads, cells of a matrix."""
