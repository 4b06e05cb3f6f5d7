"""Training of supernets: recipes, sampling of bits, calibration, quantization, workers."""
