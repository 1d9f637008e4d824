"""The functions of MRLM: one forward pass, the numbers of its two loops."""

from dataclasses import dataclass, field
from enum import Enum

import pytest
import torch
from torch.testing import assert_close
from trajectory_tools import chat_tokenizer

from online_sft.trajectories.losses import (
    compute_behavioral_cloning_loss,
    compute_combined_sft_loss,
    compute_next_state_loss,
)
from recipes.quickstart.tiny_model import build_model
from recipes.tiny_models import build_byte_tokenizer

OBSERVATIONS = ["You see a door.", "It is dark, and you hear water.", "7 + 5"]
ACTIONS = ["open it", "light the lamp and wait", "12"]
ANSWERS = ["It is locked. You need a key.", "ok", "right"]


class Role(Enum):
    USER = "user"
    ASSISTANT = "assistant"


@dataclass
class Message:
    """As in MRLM."""

    role: Role
    content: str


@dataclass
class Observation:
    messages: list[Message] = field(default_factory=list)


def one_at_a_time(model, tokenizer, given, learnt):
    """MRLM's loop: the mean loss of each row by the model's own labels, then the number of its tokens."""
    losses, counts = [], []
    for messages, text in zip(given, learnt, strict=True):
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            prompt = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
        ids = tokenizer(prompt + text, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, : len(tokenizer(prompt)["input_ids"])] = -100
        losses.append(model(input_ids=ids, labels=labels).loss)
        counts.append((labels != -100).sum())
    return torch.stack(losses), torch.stack(counts)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def references(model, tokenizer):
    before = [[user(o)] for o in OBSERVATIONS]
    after = [[user(o), assistant(a)] for o, a in zip(OBSERVATIONS, ACTIONS, strict=True)]
    return one_at_a_time(model, tokenizer, before, ACTIONS), one_at_a_time(model, tokenizer, after, ANSWERS)


def averages(losses, counts):
    return {"samples": losses.mean(), "tokens": (losses * counts).sum() / counts.sum()}


@pytest.mark.parametrize("tokenizer", [chat_tokenizer(), build_byte_tokenizer()], ids=["template", "no template"])
@pytest.mark.parametrize("average", ["samples", "tokens"])
def test_the_losses_are_those_of_the_loop(tokenizer, average):
    model = build_model(tokenizer, seed=0)
    actions, answers = (averages(*each)[average] for each in references(model, tokenizer))
    bc, info = compute_behavioral_cloning_loss(model, tokenizer, OBSERVATIONS, ACTIONS, "cpu", average=average)
    assert_close(bc, actions, rtol=1e-6, atol=0.0)
    assert info == {"bc_loss": bc.item(), "perplexity": bc.exp().item()}
    lists = (OBSERVATIONS, ACTIONS, ANSWERS)
    world, info = compute_next_state_loss(model, tokenizer, *lists, "cpu", average=average)
    assert_close(world, answers, rtol=1e-6, atol=0.0)
    assert info == {"next_state_loss": world.item(), "perplexity": world.exp().item()}
    total, info = compute_combined_sft_loss(model, tokenizer, *lists, "cpu", 0.3, 2.0, average=average)
    assert_close(total, 0.3 * actions + 2.0 * answers, rtol=1e-6, atol=0.0)
    assert list(info) == ["total_loss", "bc_loss", "world_model_loss", "bc_weight", "wm_weight"]
    assert_close(info["bc_loss"], actions.item(), rtol=1e-6, atol=0.0)
    assert (info["bc_weight"], info["wm_weight"]) == (0.3, 2.0)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (total, 0.3 * actions + 2.0 * answers)]
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_the_two_averages_differ_where_rows_do():
    model, tokenizer = build_model(chat_tokenizer(), seed=0), chat_tokenizer()
    found = [
        compute_behavioral_cloning_loss(model, tokenizer, OBSERVATIONS, ACTIONS, "cpu", average=average)[0].item()
        for average in ("samples", "tokens")
    ]
    assert abs(found[0] - found[1]) > 1e-3


def test_messages_may_be_texts_mappings_or_objects_of_mrlm():
    model, tokenizer = build_model(chat_tokenizer(), seed=0), chat_tokenizer()
    forms = [
        (OBSERVATIONS, ACTIONS, ANSWERS),
        (
            [user(o) for o in OBSERVATIONS],
            [assistant(a) for a in ACTIONS],
            [{"role": "user", "content": a} for a in ANSWERS],
        ),
        (
            [Observation([Message(Role.USER, o)]) for o in OBSERVATIONS],
            [Message(Role.ASSISTANT, a) for a in ACTIONS],
            [Observation([Message(Role.USER, "earlier"), Message(Role.USER, a)]) for a in ANSWERS],
        ),
    ]
    losses = [compute_combined_sft_loss(model, tokenizer, *form, "cpu")[0].item() for form in forms]
    assert losses[0] == losses[1] == losses[2]


def test_next_observations_without_a_message_are_left_out():
    model, tokenizer = build_model(chat_tokenizer(), seed=0), chat_tokenizer()
    empty = Observation([])
    found, _ = compute_next_state_loss(model, tokenizer, OBSERVATIONS, ACTIONS, [ANSWERS[0], empty, ANSWERS[2]], "cpu")
    kept = [OBSERVATIONS[::2], ACTIONS[::2], ANSWERS[::2]]
    assert_close(found, compute_next_state_loss(model, tokenizer, *kept, "cpu")[0], rtol=1e-6, atol=0.0)
    assert compute_next_state_loss(model, tokenizer, OBSERVATIONS, ACTIONS, [empty] * 3, "cpu")[0] == 0.0


def test_one_forward_pass_computes_both():
    tokenizer = chat_tokenizer()
    model, calls = build_model(tokenizer, seed=0), []
    model.register_forward_hook(lambda *_: calls.append(1))
    compute_combined_sft_loss(model, tokenizer, OBSERVATIONS, ACTIONS, ANSWERS, "cpu")
    assert len(calls) == 1


def test_what_is_too_long_or_of_other_length_is_named():
    model, tokenizer = build_model(chat_tokenizer(), seed=0), chat_tokenizer()
    with pytest.raises(ValueError, match=r"of one length, 1 or more; got {'observations': 3, 'actions': 2}"):
        compute_behavioral_cloning_loss(model, tokenizer, OBSERVATIONS, ACTIONS[:2], "cpu")
    with pytest.raises(ValueError, match="row 1 has nothing to learn within max_length=45: 'light the lamp"):
        compute_behavioral_cloning_loss(model, tokenizer, OBSERVATIONS, ACTIONS, "cpu", max_length=45)
    with pytest.raises(ValueError, match="average must be 'samples' or 'tokens'"):
        compute_behavioral_cloning_loss(model, tokenizer, OBSERVATIONS, ACTIONS, "cpu", average="mean")
