"""Experiments behind the commands: configurations, training runs, comparison and evaluation."""
