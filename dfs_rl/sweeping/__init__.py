"""Sweeps: what is searched, by what rule, and the trials that Ray Tune runs."""
