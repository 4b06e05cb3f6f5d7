"""Evaluation of gates: per-image records, metrics, baselines and comparisons of runs."""
