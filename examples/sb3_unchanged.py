"""Train PPO of Stable-Baselines3 on the environment as it is, and make a gate of the policy.

`SB3GatingVecEnv` runs many episodes as one batch. Stable-Baselines3's own
`make_vec_env("dfs_rl/FractionalSkipping-v0")` works as well, and is slower. The success rate that
`EvalCallback` logs is the accuracy.

Prints the evaluations on val during training, then accuracy and computation of the gate on test.
Writes `best_model.zip`, `evaluations.npz` and the run folder of the gate to `runs/sb3`.
"""

import argparse

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback

import dfs_rl
from dfs_rl.envs import SB3GatingVecEnv, make_task

FOLDER = "runs/sb3"
REWARD = {"cost": 10.0}  # running every layer at 32 bit costs 10, a correct answer brings 0.5
NETWORKS = {"net_arch": {"pi": [16], "vf": [64]}}  # the gate's own cost counts: a small actor

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    timesteps = parser.parse_args().timesteps
    env = SB3GatingVecEnv(make_task(reward=REWARD), 64, seed=0)
    val = SB3GatingVecEnv(make_task(reward=REWARD, split="val"), 50, seed=1)
    settings = {"n_steps": 24, "batch_size": 256, "learning_rate": 1e-3, "seed": 0}
    model = PPO("MultiInputPolicy", env, policy_kwargs=NETWORKS, **settings)
    callback = EvalCallback(
        val,
        n_eval_episodes=500,
        eval_freq=max(1, timesteps // 8 // env.num_envs),
        log_path=FOLDER,
        best_model_save_path=FOLDER,
        verbose=0,
    )
    model.learn(timesteps, callback=callback)
    stored = np.load(f"{FOLDER}/evaluations.npz")
    for step, returns, correct in zip(*(stored[k] for k in ("timesteps", "results", "successes"))):
        print(
            f"{step:8,} steps: return {returns.mean():7.3f}, success {100 * correct.mean():.1f} %"
        )

    gate = dfs_rl.gate_from_sb3(f"{FOLDER}/best_model.zip", run_dir=f"{FOLDER}/gate")
    data = dfs_rl.load_dataset("digits")
    logits, trace = gate.load()(data.test.images)
    right = 100 * (logits.argmax(dim=1) == data.test.labels).double().mean()
    print(f"gate: {right:.2f} % correct at {trace.computation.mean():.3f} % computation")
