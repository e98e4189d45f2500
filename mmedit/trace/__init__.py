"""Causal tracing: where in a VLM an answer comes from."""
