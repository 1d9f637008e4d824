"""The first rows or prompts of a run, as its trainer prepares them."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from online_sft.inspection import Inspection, Row, Summary, findings_in, tokens_of, visible
from online_sft.rewards.checked import name_of
from online_sft.trajectories.rendering import ACTION, OBSERVATION
from trainers.inspection import texts_of
from trainers.step_weights import loss_tokens
from trainers.weighted_sft_trainer import WeightedSFTTrainer

__all__ = ["NUM_SHOWN", "Prompts", "example_rows", "prompts_of"]

NUM_SHOWN = 3
_ROLES = {ACTION: "action", OBSERVATION: "observation"}
_PASSED = ("prompts", "completions", "completion_ids", "trainer_state")


@dataclass(frozen=True)
class Prompts:
    """Prompts as the policy will see them."""

    shown: list[str]  # with special tokens, printable
    lengths: list[int]  # in tokens, of all that were looked at
    columns_of: dict[str, str]  # by reward function, what it is called with


def example_rows(trainer: WeightedSFTTrainer) -> Inspection:
    """The first rows that a trainer has prepared, packed where they will be, with the weight of each loss token.

    Weights are normalised and clipped as if these rows made up one optimizer step.
    """
    prepared = list(islice(trainer.train_dataset, NUM_SHOWN))
    collated = [trainer.data_collator([row]) for row in prepared]
    # not those of trajectories, which divide by the step's tokens of each kind
    weighed, _ = WeightedSFTTrainer._weighed(trainer, collated, update=False)
    rows = []
    for number, (row, batch) in enumerate(zip(prepared, weighed, strict=True)):
        length = len(row["input_ids"])
        loss = loss_tokens(torch.as_tensor(batch["labels"]))[0, :length]
        weights = batch["advantages"][0, :length].masked_fill(~loss, 0.0)
        rows.append(Row(number, torch.tensor(row["input_ids"]), loss, weights, length))
    tokenizer = trainer._tokenizer
    texts = [texts_of(row.input_ids.tolist(), tokenizer) for row in rows]
    roles = [[_ROLES.get(kind, "") for kind in row.get("kinds", [0] * len(row["input_ids"]))] for row in prepared]
    return Inspection(
        findings=findings_in(
            rows, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, max_length=None
        ),
        summary=Summary.of(len(rows), rows),
        shown={row.number: tokens_of(row, *named) for row, *named in zip(rows, texts, roles, strict=True)},
        notes=[],
    )


def prompts_of(trainer: Any, rows: Sequence[dict[str, Any]]) -> Prompts:
    """The prompts of the rows through the trainer's own tokenisation.

    Raises:
        ValueError: conversations, and the tokenizer has no chat template.
    """
    ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    tokenizer = trainer._tokenizer
    columns = [name for row in rows[:1] for name in row if name != "prompt"]
    return Prompts(
        shown=[visible(tokenizer.decode(tokens, skip_special_tokens=False)) for tokens in ids[:NUM_SHOWN]],
        lengths=[len(tokens) for tokens in ids],
        columns_of={name_of(function): _called_with(function, columns) for function in trainer.reward_funcs},
    )


def _called_with(function: Any, columns: list[str]) -> str:
    given = [*_PASSED, *columns]
    named = [name for name in inspect.signature(function).parameters if name in given and name not in _PASSED]
    needs = f"; it names {', '.join(named)}" if named else ""
    return f"{', '.join(given)}{needs}"
