"""Edits as things of their own: loaded, shared, and answered many at a time."""
