"""Play, measures, pictures and figures of trained agents."""
