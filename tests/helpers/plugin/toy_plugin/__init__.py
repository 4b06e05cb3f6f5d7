"""Small third-party package: one extension of each kind, each in one file."""
