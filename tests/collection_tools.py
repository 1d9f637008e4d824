"""Environments whose episodes are known beforehand, a model that says one of a few bytes, and trainers that collect."""

from pathlib import Path

import gymnasium
import numpy as np
import torch
from exact_on_cpu import EXACT_ON_CPU
from trajectory_tools import chat_tokenizer
from transformers import TrainerCallback

from online_sft.trajectories.dataset import TrajectoryDataset
from online_sft.trajectories.rendering import Renderer
from recipes.quickstart.tiny_model import build_model
from trainers.trajectory_sft_config import TrajectorySFTConfig
from trainers.trajectory_sft_trainer import TrajectorySFTTrainer


class Dice:
    """Shows a die for each action, as often as the seed says; all that it says and pays follows from seed and actions.

    The reward is how often the last face is among the bytes of the action, plus half of its parity; success: the last
    one is paid.
    """

    def reset(self, *, seed=None, options=None):
        self.draw = np.random.default_rng(seed)
        self.left = 1 + seed % 3
        return self._show(), {"group": f"dice {seed % 2}"}

    def step(self, action):
        reward = action.count(str(self.face)) + 0.5 * (len(action.encode()) % 2)
        self.left -= 1
        return self._show(), reward, self.left == 0, False, {} if self.left else {"success": reward > 0}

    def close(self):
        pass

    def _show(self):
        self.face = int(self.draw.integers(1, 7))
        return f"{self.face}"


class Ignorant(Dice):
    """The same whatever the policy does: two observations, the first action pays 1."""

    def reset(self, *, seed=None):
        self.seed, self.left = seed, 2
        return f"task {seed % 7}", {}

    def step(self, action):
        self.left -= 1
        return f"left {self.left} of {self.seed % 5}", float(self.left), not self.left, False, {}


CHECKPOINTED = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"every_n_layers": 2, "use_reentrant": False},
}

# `collection_tools:Dice-v0` is an id that imports this module first
gymnasium.register("Dice-v0", lambda: GymnasiumDice(), disable_env_checker=True)


class GymnasiumDice(Dice, gymnasium.Env):
    """With Gymnasium's wrappers around it."""


def forced_model(log_odds, *, others=-1e4, is_blind=True):
    """Says characters, or "end", with chances softmax(`log_odds`), whatever it reads; where it is not blind, in
    addition to what it would have said."""
    tokenizer = chat_tokenizer()
    model = build_model(tokenizer, seed=0)
    with torch.no_grad():
        if is_blind:
            model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.full((len(tokenizer),), others))
        for token, value in log_odds.items():
            ids = [tokenizer.eos_token_id] if token == "end" else tokenizer.encode(token)
            model.lm_head.bias[ids] = value
    return model


def arguments(**options):
    sizes = {"per_device_train_batch_size": 2, "collect_episodes": 4, "num_environments": 3}
    rest = {"max_completion_length": 6, "learning_rate": 1e-2, "max_steps": 4}
    return TrajectorySFTConfig(**{**EXACT_ON_CPU, **sizes, **rest, **options})


def collecting(environments=(Dice,), model=None, tokenizer=None, *, train_dataset=None, options=None, **arguments_):
    """A trainer of a tiny model; `options` are the trainer's own."""
    tokenizer = tokenizer or chat_tokenizer()
    model = model or build_model(tokenizer, seed=0)
    return TrajectorySFTTrainer(
        model,
        arguments(**arguments_),
        train_dataset=train_dataset,
        processing_class=tokenizer,
        environments=environments,
        **(options or {}),
    )


def log_of(trainer, *names):
    """The values of these names in each entry of a training step."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [tuple(entry[name] for name in names) for entry in entries]


def rounds(folder="out"):
    """The trajectories of each round that has been written."""
    return [list(TrajectoryDataset.load(path)) for path in sorted(Path(folder, "trajectories").iterdir())]


class Snapshots(TrainerCallback):
    """The weights before each step."""

    def __init__(self):
        self.found = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.found.append({name: value.clone() for name, value in model.state_dict().items()})


def greedy_actions(model, tokenizer, snapshots, collected):
    """What a model with the weights of each snapshot says in the states of its round: at most 6 likeliest tokens."""
    texts = []
    model.eval()
    for snapshot, trajectories in zip(snapshots, collected, strict=True):
        model.load_state_dict(snapshot)
        for each in trajectories:
            prompts = [Renderer(tokenizer).prompt_ids(each.messages(t)) for t in range(len(each))]
            texts += [_greedy(model, tokenizer, prompt) for prompt in prompts]
    return texts


@torch.no_grad()
def _greedy(model, tokenizer, prompt_ids):
    ids = torch.tensor([prompt_ids])
    while ids.size(1) < len(prompt_ids) + 6 and (
        ids.size(1) == len(prompt_ids) or ids[0, -1] != tokenizer.eos_token_id
    ):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, len(prompt_ids) :], skip_special_tokens=True)


def with_dropout(model=None, share=0.3):
    model = model or build_model(chat_tokenizer(), seed=0)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = share
    return model


def parameters(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
