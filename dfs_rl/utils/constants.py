"""Constants shared by several packages."""

DIGITS = "digits"
"""Name of scikit-learn's digits data set, the default data set of every command."""
