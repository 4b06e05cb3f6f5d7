"""Backbones out of users' own models."""
