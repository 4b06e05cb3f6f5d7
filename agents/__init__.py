"""Everything that learns a gate: algorithms, policies, buffers, supervised and static methods."""
