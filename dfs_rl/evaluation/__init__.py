"""Any gate to records, records to metrics, and the rivals that a gate must beat."""
