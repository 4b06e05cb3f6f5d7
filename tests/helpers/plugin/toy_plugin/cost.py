"""Cost of moving weights: proportional to the bits."""

import dfs_rl


@dfs_rl.register_cost_model("traffic")
def traffic(macs, bits, layer):
    return macs * bits
