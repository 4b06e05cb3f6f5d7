"""Conversion of users' own models into backbones."""
