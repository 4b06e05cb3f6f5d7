"""Reports of sweeps: text, figures and one HTML page."""
