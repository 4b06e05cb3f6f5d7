"""Training of gates: algorithms, policies, buffers, supervised and static methods."""
