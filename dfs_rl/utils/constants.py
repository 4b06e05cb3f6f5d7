"""Names that several layers share."""

DIGITS = "digits"
"""The data set that ships with scikit-learn, and the default everywhere."""
