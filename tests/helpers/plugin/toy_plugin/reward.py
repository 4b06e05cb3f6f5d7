"""Reward for a correct answer at a low cost."""

import dfs_rl


@dfs_rl.register_reward_term("thrift")
def thrift(scores, spent):
    return scores.correct.double() * (1.0 - spent)
