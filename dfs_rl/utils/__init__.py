"""Command line, configuration, run folders, atomic files, seeding, devices and signals."""
