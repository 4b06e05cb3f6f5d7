"""Train a gate in Python, evaluate it against its baselines, and ship it as two folders.

Prints the table of the test split, then what the shipped model does with ten test images at two
budgets. A gate for all budgets is trained once and set to any of them.
Writes the run folder `runs/gate`, and `shipped/` with the network and the gate alone.
"""

import argparse
import shutil

import dfs_rl

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    timesteps = parser.parse_args().timesteps
    data = dfs_rl.load_dataset("digits")

    # None is the network for these digits that ships with the package.
    gate = dfs_rl.train_gate(
        None,
        data,
        method="gumbel",
        budget=1.0,  # percent of all layers at 32 bit, on average over images
        timesteps=timesteps,
        callback=lambda record: print(f"{record['progress']:4.0%} of the training", flush=True),
        run_dir="runs/gate",
    )
    result = dfs_rl.evaluate(gate, data)
    columns = ["label", "accuracy", "computation", "difference", "low", "high"]
    print(result.to_frame()[columns].round(2).to_string(index=False))

    for part in ("backbone", "gate"):  # all that dfs_rl.load needs
        shutil.copytree(gate.path / part, f"shipped/{part}", dirs_exist_ok=True)
    images, labels = data.test.images[:10], data.test.labels[:10]
    for budget in (1.0, 1.5):
        model = dfs_rl.load("shipped", budget=budget)
        logits, trace = model(images)
        right = int((logits.argmax(dim=1) == labels).sum())
        print(f"budget {budget} %: {right} of 10 right, bits of the first image and computation of")
        print(trace.bits[0].tolist(), [round(value, 2) for value in trace.computation.tolist()])
