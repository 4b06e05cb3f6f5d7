"""Static bit tables: search, scoring, fitting to a budget."""
