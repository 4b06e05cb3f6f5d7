"""Find a static bit table for a budget in milliseconds, export it, and run it in onnxruntime.

`profile` measures the network on this machine. Few bits save no time on a CPU, skipped layers do,
so the network learns with random layers skipped. On one as small as this, the decisions of a
learned gate take as long as its layers; on a larger one, give `method="ppo"`, `passes=1` and
`format="onnx"`.

Prints the profile's time of the whole network and the budget, then the table and its median time.
Needs `pip install 'dfs-rl[export]'`. Writes `table.onnx`, `latency.json` and two folders in `runs`.
"""

import argparse
import time

import numpy as np
import onnxruntime

import dfs_rl

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--backbone", default="resnet14")
    args = parser.parse_args()
    data = dfs_rl.load_dataset("digits")
    backbone = dfs_rl.train_backbone(
        args.backbone, data, bits=[0, 32], epochs=args.epochs, run_dir="runs/net"
    )
    profile = dfs_rl.profile(backbone, "latency.json", runtime="onnx", batch_sizes=[1], calls=20)
    fixed = profile.milliseconds("stem") + profile.milliseconds("head")
    layers = range(len(profile.layer_macs))
    full = fixed + sum(profile.milliseconds("layer", layer, 32) for layer in layers)
    least = fixed + sum(profile.milliseconds("layer", layer, 0) for layer in layers)
    budget = full - 0.15 * (full - least)
    gate = dfs_rl.train_gate(
        backbone,
        data,
        method="static_greedy",
        cost="latency",
        latency={"profile": "latency.json"},
        budget=budget,
        budget_unit="ms",
        run_dir="runs/fast",
    )
    model = gate.load()
    dfs_rl.export(model, "table.onnx", format="onnx-static")
    session = onnxruntime.InferenceSession("table.onnx")
    images, labels = data.test.images.numpy() / np.float32(255), data.test.labels.numpy()
    logits, times = [], [time.perf_counter()]
    for image in images:
        logits.append(session.run(["logits"], {"images": image[None]})[0])
        times.append(time.perf_counter())
    measured = 1000 * np.median(np.diff(times))
    accuracy = 100 * (np.concatenate(logits).argmax(axis=1) == labels).mean()
    bits = [backbone.options[option] for option in model.gate.table]
    print(f"all {full:.4f} ms, budget {budget:.4f} ms per image")
    print(f"{bits}: {measured:.4f} ms measured, {accuracy:.2f} % correct")
