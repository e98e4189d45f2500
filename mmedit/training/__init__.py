"""Training for editors that learn: one outer loop, its checkpoints. It knows no method."""
