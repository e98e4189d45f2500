"""Edits leave mmedit: as a transformers folder, or as a LoRA adapter of PEFT. Both are checked."""
