"""What the commands do: configurations, runs that train gates and supernets, comparison, evaluation."""
