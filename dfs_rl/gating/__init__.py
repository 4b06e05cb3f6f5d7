"""Rollouts of gated networks: states, observations, rewards, masks, gates, deployable model."""
