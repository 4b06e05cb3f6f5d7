"""Compare two checkouts: run every command briefly in both, and compare all figures and tensors.

It verifies that a change moves no figure::

    python benchmarks/compare_checkouts.py ../before . --renames renames.tsv

Each command trains on digits, on one thread, in this Python's environment; a checkout takes about
six minutes of one core. Every number and word in JSON, JSON lines and CSV, and every safetensors
file, is compared to the last bit. Values that differ between two runs of the same code are left
out, see ``IGNORED``. Exit code 1 if anything differs.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

IGNORED = {
    # time and machine
    *("created", "date", "seconds", "minutes", "time", "steps_per_second", "machine", "versions"),
    # command lines and paths; settings are compared by their effects
    *(
        "command",
        "commands",
        "evaluation",
        "identity",
        "config_sha256",
        "run_dir",
        "path",
        "folder",
        "runs",
    ),
}
"""Keys of figures that differ between two runs of the same code."""
IGNORED_FILES = {"timing.json", "run.json"}
IGNORED_FOLDERS = {"tensorboard", "tune"}
SHOWN = 20

AGENT = "--timesteps 1200 --num-envs 64 --eval-every 400"
GUMBEL = "--timesteps 1500 --eval-every 600"
STATIC = "--budget 3 --images 200"
RUNS = {
    "supernet": "train_backbone --epochs 2 --backbone resnet8 --training.calibration-rounds 1",
    "adn": "train_backbone --epochs 1 --backbone resnet14 --recipe adn --width 8 "
    "--training.calibration-rounds 1",
    "exits": "train_exits --after 1 2",
    "ppo": f"train_agent {AGENT} --checkpoint-every 300",
    "ppo_grouped": f"train_agent {AGENT} --start indifferent --group-size 8",
    "ppo_exits": f"train_agent {AGENT} --backbone {{out}}/exits",
    "ppo_cotrained": f"train_agent {AGENT} --backbone-mode co-train",
    "ppo_continued": f"train_agent {AGENT} --init-gate {{out}}/ppo_grouped",
    "maskable_ppo": f"train_agent {AGENT} --algo maskable_ppo --per-input-budget 6",
    "a2c": f"train_agent {AGENT} --algo a2c --fixed-budget",
    "trpo": f"train_agent {AGENT} --algo trpo",
    "recurrent_ppo": f"train_agent {AGENT} --algo recurrent_ppo",
    "dqn": f"train_agent {AGENT} --algo dqn",
    "qrdqn": f"train_agent {AGENT} --algo qrdqn --budget 3",
    "gumbel": f"train_gumbel {GUMBEL} --budget 3",
    "gumbel_lstm": f"train_gumbel {GUMBEL} --budget 3 --gate lstm",
    "gumbel_cotrained": f"train_gumbel {GUMBEL} --budget 3 --backbone-mode co-train",
    "dfs": f"train_gumbel {GUMBEL} --budget 3 --method dfs",
    "skipnet": f"train_gumbel {GUMBEL} --budget 60 --method skipnet",
    "blockdrop": f"train_gumbel {GUMBEL} --budget 3 --method blockdrop",
    "ddpg": f"train_static {STATIC} --method ddpg --episodes 40",
    "static_ppo": f"train_static {STATIC} --method ppo --episodes 40",
    "greedy": f"train_static {STATIC} --method greedy",
    "cascade": "train_cascade --budget 3",
    "comparison": "compare {out}/ppo {out}/gumbel {out}/cascade --budgets 1 2 --search.tables 30",
    "sweep": "sweep {out}/sweep.yaml",
}
"""Commands, with flags in the spelling of the second checkout."""
SWEEP = """\
command: train_agent
settings: {timesteps: 640, num_envs: 32, eval_every: 320, fixed_budget: true}
search: {cost_weight: {loguniform: [1, 30]}}
objective: {name: accuracy, budget: 3}
trials: 2
retrain: {best: 1, seeds: 1}
"""


def import_root(checkout: Path, folder: Path) -> Path:
    """Link the packages as they install, below ``dfs_rl``, and at the top for older checkouts."""
    package = folder / "dfs_rl"
    package.mkdir(parents=True)
    for entry in (checkout / "dfs_rl").iterdir():
        (package / entry.name).symlink_to(entry)
    for name in ("agents", "envs"):
        for place in (package, folder):
            (place / name).symlink_to(checkout / name)
    return folder


def run_all(checkout: Path, out: Path, names: list[str], flags: dict[str, str]) -> None:
    """Run the commands of one checkout; ``flags`` maps flags to its spelling."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweep.yaml").write_text(SWEEP)
    with tempfile.TemporaryDirectory() as folder:
        root = import_root(checkout, Path(folder) / "root")
        # Ray's sockets need a short path.
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        for name in names:
            command, *arguments = RUNS[name].format(out=out).split()
            words = [flags.get(word, word) for word in arguments]
            if command not in ("compare", "sweep"):
                words += ["--dataset", "digits"]
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", f"dfs_rl.{command}", *words, "--run-dir", str(out / name)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
            if done.returncode:
                sys.exit(f"{name} failed in {checkout}:\n{done.stderr[-2000:]}")


def figures(path: Path, renames: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield each number, word and tensor in a file with its place, keys renamed."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            yield from leaves(state, "state", renames)
            for key in file.keys():  # noqa: SIM118 - no dictionary
                tensor = file.get_tensor(key)
                data = tensor.contiguous().flatten().view(torch.uint8)
                name = ".".join(renames.get(part, part) for part in key.split("."))
                yield name, (tensor.dtype, tensor.shape, bytes(data.numpy()))
    elif path.suffix == ".json":
        yield from leaves(json.loads(path.read_text()), "", renames)
    elif path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        yield from leaves(records, "", renames)
    elif path.suffix == ".csv":
        yield from leaves(list(csv.DictReader(path.open())), "", renames)


def leaves(value: object, place: str, renames: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested values with their paths."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in IGNORED:
                yield from leaves(item, f"{place}/{renames.get(key, key)}", renames)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{place}[{index}]", renames)
    else:
        yield place, repr(renames.get(value, value) if isinstance(value, str) else value)


def differences(
    before: Path, after: Path, renames: dict[str, str]
) -> tuple[int, list[tuple[str, str, str]]]:
    """Return the number of figures and tensors in a run, and those that differ."""
    found: list[dict[str, Any]] = []
    for run, names in ((before, renames), (after, {})):
        files = (f for f in sorted(run.rglob("*")) if f.is_file() and f.name not in IGNORED_FILES)
        found.append(
            {
                f"{file.relative_to(run)}:{place}": value
                for file in files
                if not IGNORED_FOLDERS & set(file.parts)
                for place, value in figures(file, names)
            }
        )
    old, new = found
    differ = [
        (place, *(str(values.get(place, "missing"))[:60] for values in (old, new)))
        for place in sorted(old.keys() | new.keys())
        if old.get(place) != new.get(place)
    ]
    return len(old.keys() | new.keys()), differ


def main() -> int:
    """Run and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="checkout that is trusted")
    parser.add_argument("after", type=Path, help="checkout that is in question")
    parser.add_argument(
        "--renames", type=Path, help="lines OLD<tab>NEW: flags, keys, words, parts of tensor names"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="these runs")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--reuse", action="store_true", help="take runs that lie in --out already")
    flags = parser.parse_args()
    lines = [] if flags.renames is None else flags.renames.read_text().splitlines()
    renames = dict(line.split("\t") for line in lines if line)
    old_flags = {new: old for old, new in renames.items() if old.startswith("--")}
    out = (flags.out or Path(tempfile.mkdtemp())).resolve()
    different = False
    for side, checkout in (("before", flags.before), ("after", flags.after)):
        missing = [n for n in flags.only if not (flags.reuse and (out / side / n).is_dir())]
        print(f"{side}: {checkout}")
        spelling = old_flags if side == "before" else {}
        run_all(checkout.resolve(), out / side, missing, spelling)
    for name in flags.only:
        n, differ = differences(out / "before" / name, out / "after" / name, renames)
        different |= bool(differ)
        print(f"{name}: {n} figures and tensors, {len(differ)} differ")
        for place, old, new in differ[:SHOWN]:
            print(f"    {place}: {old} -> {new}")
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
