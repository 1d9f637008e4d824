"""The stages of the recipes: training on episodes, training on graded actions, and what each model can do after it."""

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from online_sft import OnlineSFTConfig, OnlineSFTTrainer, TrajectorySFTConfig, TrajectorySFTTrainer
from recipes.on_cpu import EVERYWHERE
from recipes.text_world.behaviour import behaviour_data, held_out_states
from recipes.text_world.evaluate import prediction_accuracy, return_of, score
from recipes.text_world.report import Stage
from recipes.text_world.tiny_model import build_model, build_tokenizer
from recipes.text_world.world import STATES, read_state, reward_of

__all__ = ["GOOD_EPISODES", "Stages", "graded_actions"]

_ACTION = {"max_completion_length": 2}  # a word and its end
_EPISODES = {
    "per_device_train_batch_size": 64,
    "max_steps": 200,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
}
# Two samples of each of 128 prompts a step, by default
_ONLINE = {
    "per_device_train_batch_size": 256,
    "max_steps": 120,
    "learning_rate": 4e-4,
    "lr_scheduler_type": "linear",
}
# Those that arrive with at most two wasted steps
GOOD_EPISODES = {"filter_low_reward": True, "min_reward_threshold": 0.75}


class Stages:
    """The episodes, and the models that are trained.

    Args:
        output_dir: for models and episodes.
        seed: of episodes, held-out states, models and training.
        steps: at most this many a stage; None for all.
    """

    def __init__(self, output_dir: Path, seed: int, steps: int | None) -> None:
        self.output_dir, self.seed, self.steps = output_dir, seed, steps
        self.held_out = held_out_states(seed)
        self.starts = [state for state in STATES if state not in self.held_out]
        self.episodes = behaviour_data(self.held_out, seed)
        self.tokenizer = build_tokenizer()
        output_dir.mkdir(parents=True, exist_ok=True)
        self.episodes.save(output_dir / "episodes.jsonl")

    def introduction(self) -> str:
        """Of the data, for the terminal."""
        said = " | ".join(message["content"] for message in self.episodes[0].messages())
        return (
            f"{len(self.episodes):,} episodes, none of which comes through one of the {len(self.held_out)} of "
            f"{len(STATES)} states that are held out; {torch.get_num_threads()} CPU threads\nan episode: {said}"
        )

    def data(self) -> Stage:
        """The episodes as a row of the table."""
        mean_return = self.episodes.statistics().mean_return
        return Stage("the episodes", mean_return=mean_return, score=score(mean_return, self.starts))

    def imitate(self, name: str, mode: str, **options: Any) -> Stage:
        """A new model learns from the episodes."""
        args = TrajectorySFTConfig(mode=mode, **self._settings(name, {**_EPISODES, **options}))
        trainer = TrajectorySFTTrainer(
            build_model(self.seed), args, train_dataset=self.episodes, processing_class=self.tokenizer
        )
        return self._train(trainer, walks=mode != "world_model", predicts=mode != "behavioral_cloning")

    def improve(self, name: str, model: PreTrainedModel) -> Stage:
        """A model learns from its own actions, graded: one turn, in each state that is not held out."""
        states = map(str, self.starts)
        prompts = [{"prompt": [{"role": "user", "content": state}], "state": state} for state in states]
        args = OnlineSFTConfig(**self._settings(name, _ONLINE))
        trainer = OnlineSFTTrainer(
            model, graded_actions, args, Dataset.from_list(prompts), processing_class=self.tokenizer
        )
        return self._train(trainer, walks=True, predicts=True)

    def model(self, stage: Stage) -> PreTrainedModel:
        """As it was after a stage."""
        return AutoModelForCausalLM.from_pretrained(self.output_dir / stage.name)

    def _settings(self, name: str, stage: dict[str, Any]) -> dict[str, Any]:
        limit = {"max_steps": min(self.steps, stage["max_steps"])} if self.steps else {}
        return {"output_dir": str(self.output_dir / name), "seed": self.seed, **EVERYWHERE, **_ACTION, **stage, **limit}

    def _train(self, trainer: Trainer, *, walks: bool, predicts: bool) -> Stage:
        name = Path(trainer.args.output_dir).name
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        trainer.save_model()
        mean_return = return_of(trainer, self.starts) if walks else None
        return Stage(
            name,
            accuracy=prediction_accuracy(trainer.model, self.tokenizer, self.held_out) if predicts else None,
            mean_return=mean_return,
            score=None if mean_return is None else score(mean_return, self.starts),
            seconds=seconds,
            history=trainer.state.log_history,
        )


def graded_actions(completions: list[list[dict[str, str]]], state: list[str], **columns: object) -> list[float]:
    """What the world pays for an action in a state.

    It charges for a wasted step at once, so that the best action of a turn is the best one of an episode.
    """
    turns = zip(completions, state, strict=True)
    return [reward_of(read_state(text), completion[0]["content"]) for completion, text in turns]
