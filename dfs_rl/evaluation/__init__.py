"""Any gate to records, records to metrics, and the baselines that a gate must beat."""
