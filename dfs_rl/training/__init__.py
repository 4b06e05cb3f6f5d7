"""Training of supernets: recipes, sampling of bits, calibration, post-training quantization, several workers."""
