"""The walk through a gated network: states, observations, rewards, masks, gates, and the deployable model."""
