"""Learning a gate with Stable-Baselines3: algorithms by name, the layer-wise policy, group-relative advantages, deployment."""
