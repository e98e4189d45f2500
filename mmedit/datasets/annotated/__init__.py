"""Benchmarks read from annotation files: E-VQA, E-IC, VLKEB, MMKE-Bench, and your own."""
