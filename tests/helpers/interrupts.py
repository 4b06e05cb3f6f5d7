"""Interruption of a training at a given step."""

import os
import signal

from dfs_rl.agents.logging import ProgressBar


class SignalAt(ProgressBar):
    """Progress bar that sends this process a signal at a number of steps."""

    def __init__(self, timesteps=None, number=signal.SIGINT):
        super().__init__(0)
        self.at = timesteps
        self.number = number

    def update(self, timesteps, **figures):
        if timesteps == self.at:
            os.kill(os.getpid(), self.number)
