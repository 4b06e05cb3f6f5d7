"""The text of a latency profile."""

from dataclasses import replace

from dfs_rl.costs import BitOptions, CostTable, ExitCost
from dfs_rl.costs.latency_profile import NetworkLatency
from dfs_rl.reporting.latency_table import latency_text
from tests.helpers.latencies import made_up_profile

TEXT = """\
Measured on a machine, 1 thread, with torch 2.13.0.

batch 1   0 bit   8 bit    exit    gate
───────────────────────────────────────
layer 0  0.1000  0.9000          0.0625
layer 1  0.2000  1.8000  0.1250  0.0625
Milliseconds per image, medians of about 10 calls; stem 0.5000, head 0.2500. Sums of parts against 2
  whole networks, uniform and random: mean absolute error 15.0 %, largest -20.0 %, of all layers at
  8 bit.
"""


def test_latency_text():
    exits = (ExitCost(after=1, macs=6, bits=8),)
    costs = CostTable(options=BitOptions((0, 8)), layer_macs=(10, 30), exits=exits)
    checks = tuple(
        NetworkLatency(bits=bits, batch_size=1, predicted=predicted, measured=1.0)
        for bits, predicted in (((0, 8), 1.1), ((8, 8), 0.8))
    )
    assert latency_text(replace(made_up_profile(costs), checks=checks)) == TEXT
