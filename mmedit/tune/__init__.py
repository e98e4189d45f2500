"""The search of settings: a run for every point of a grid, on validation cases."""
