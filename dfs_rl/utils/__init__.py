"""Command line, configuration, run folders, crash-safe files, seeding, devices, signals."""
