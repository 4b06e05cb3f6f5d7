"""Hyperparameter sweeps: search space, objective, and trials run by Ray Tune."""
