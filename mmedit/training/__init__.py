"""Training of editors that learn: the loop and its checkpoints. Knows no editing method."""
