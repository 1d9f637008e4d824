"""Collects and trains, on one process or on several that `torchrun` starts, and writes what each of them saw.

python collection_worker.py KIND OUTPUT.json
"""

import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import torch
from accelerate.utils import gather_object
from collection_tools import Dice, collecting, forced_model
from trajectory_tools import ragged_trajectories

from trainers.trajectories.evaluation import EnvironmentEvaluationCallback

GLOBAL_BATCH = 4


class Unpicklable(Dice):
    """Half of its seeds fail."""

    fails = False

    def __init__(self):
        self.lock = threading.Lock()

    def step(self, action):
        if self.fails and self.seed % 2:
            raise LookupError("odd")
        return super().step(action)

    def reset(self, *, seed=None):
        self.seed = seed
        return super().reset(seed=seed)


class Failing(Unpicklable):
    fails = True


KINDS = {
    "3 episodes": {"collect_episodes": 3},
    "1 episode": {"collect_episodes": 1},
    "failures": {"collect_episodes": 7, "environments": [Failing]},
    "buffer": {"collect_episodes": 5, "collect_every": 2, "max_trajectories": 9, "max_trajectory_staleness": 3},
    "weighted": {"reward_weighting": "reward_to_go", "weighting": "exponential", "collect_episodes": 6},
}


@contextmanager
def collective(rollouts, accelerator):
    """An engine that all processes call together with equally many prompts, as vLLM's server and ZeRO-3 are."""

    def sample(prompt_ids, num_generations):
        numbers = gather_object([len(prompt_ids)])
        assert set(numbers) == {len(prompt_ids)}, numbers
        assert prompt_ids
        return engine.sample(prompt_ids, num_generations)

    with rollouts as engine:
        yield replace(engine, sample=sample)


def train(kind, num_processes, folder):
    """Greedy actions, because each process has random numbers of its own."""
    options = {"environments": [Unpicklable], **KINDS[kind]}
    sizes = {
        "per_device_train_batch_size": GLOBAL_BATCH if num_processes == 1 else 1,
        "gradient_accumulation_steps": 1 if num_processes == 1 else 2,
    }
    trainer = collecting(
        **options,
        **sizes,
        sampling_temperature=1e-4,
        train_dataset=ragged_trajectories(2),
        output_dir=f"{folder}/{num_processes}",
        max_length=300,
    )
    trainer.synced_rollouts = lambda: collective(trainer.rollouts.synced(), trainer.accelerator)
    rows, collate = [], trainer.data_collator
    trainer.data_collator = lambda batch: rows.extend(row["input_ids"] for row in batch) or collate(batch)
    assert trainer.accelerator.num_processes == num_processes
    trainer.train()
    wrapper = type(trainer.model_wrapped).__name__
    assert wrapper == ("DistributedDataParallel" if num_processes > 1 else "Qwen2ForCausalLM"), wrapper
    return {
        "world_size": trainer.accelerator.num_processes,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "rows": rows,
        "parameters": torch.cat([value.detach().flatten() for value in trainer.model.parameters()]).tolist()[::97],
    }


def sampled(kind, num_processes, folder):
    """Random actions, of a policy that stays as it is, and an evaluation."""
    model = forced_model({"1": 0.0, "2": 0.0, "end": -1.0})
    trainer = collecting([Unpicklable], model, output_dir=f"{folder}/{num_processes}", learning_rate=0.0, max_steps=2)
    options = {"num_tasks": 5, "num_generations": 2, "ks": (1, 2)}
    if kind == "silent evaluation":
        trainer.model.lm_head.bias.data[trainer.processing_class.eos_token_id] = 1e4
    else:
        trainer.train()
    metrics = EnvironmentEvaluationCallback(trainer, [Unpicklable], **options).evaluate()
    return {"world_size": trainer.accelerator.num_processes, "metrics": metrics}


def run(kind, num_processes, folder):
    return (train if kind in KINDS else sampled)(kind, num_processes, folder)


if __name__ == "__main__":
    kind, output = sys.argv[1:]
    found = run(kind, 2, str(Path(output).parent))
    from accelerate import PartialState

    Path(f"{output}.{PartialState().process_index}").write_text(json.dumps(found))
