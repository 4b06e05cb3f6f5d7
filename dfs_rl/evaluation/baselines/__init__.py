"""Baselines that gates are compared with."""
