"""Learning one static bit table for all inputs."""
