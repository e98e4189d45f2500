"""Edits of a weight by a formula: the algebra of ROME, MEMIT, AlphaEdit and UltraEdit."""
