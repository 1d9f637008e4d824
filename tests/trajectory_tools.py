"""Ragged trajectories, and the slow, obvious version of what is learnt from them: one sequence at a time, by hand."""

import random

import torch

from online_sft.trajectories.trajectory import Trajectory
from recipes.tiny_models import CHAT_TEMPLATE, build_byte_tokenizer

WORDS = ("north", "go", "é ü", "7 + 5", "", "the lamp is on", "\n", "ok.")


def chat_tokenizer():
    """One token a byte; `<role>content<|end|>`."""
    return build_byte_tokenizer(CHAT_TEMPLATE)


def ragged_trajectories(number, seed=0, max_turns=4):
    """Of 1 to `max_turns` actions; some begin with a system message, have several messages an observation, or no last
    one."""
    draw = random.Random(seed)

    def said():
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 3)))

    trajectories = []
    for index in range(number):
        turns = draw.randint(1, max_turns)
        observations = [said() for _ in range(turns + draw.randint(0, 1))]
        observations[0] = [{"role": "system", "content": said()}, {"role": "user", "content": observations[0]}]
        if index % 3 == 1 and len(observations) > 1:
            observations[1] = [{"role": "tool", "content": said()}, {"role": "user", "content": said()}]
        rewards = [draw.choice([-1.0, 0.0, 0.5, 2.0]) for _ in range(turns)]
        trajectories.append(Trajectory(observations, [said() for _ in range(turns)], rewards, {"group": index % 2}))
    return trajectories


def tokens_by_hand(trajectory, tokenizer, kinds=("action", "observation")):
    """(token, kind, turn) of the whole conversation; the kind is None where nothing is learnt. A turn's observation is
    what answers its action."""
    tokens = []
    for t, observation in enumerate(trajectory.observations):
        is_target = t > 0 and "observation" in kinds
        for message in observation:
            tokens += [(token, None, None) for token in tokenizer.encode(f"<{message['role']}>")]
            content = [*tokenizer.encode(message["content"]), tokenizer.eos_token_id]
            tokens += [(token, "observation" if is_target else None, t - 1) for token in content]
        if t < len(trajectory.actions):
            tokens += [(token, None, None) for token in tokenizer.encode("<assistant>")]
            content = [*tokenizer.encode(trajectory.actions[t]["content"]), tokenizer.eos_token_id]
            tokens += [(token, "action" if "action" in kinds else None, t) for token in content]
    return tokens


def mean_losses(model, tokenizer, trajectories, weights=None):
    """The mean cross-entropy over all action tokens, times the weights of their actions, and over all tokens of next
    observations: one dense forward pass for each trajectory."""
    sums, counts = {"action": 0.0, "observation": 0.0}, {"action": 0, "observation": 0}
    for index, trajectory in enumerate(trajectories):
        tokens = tokens_by_hand(trajectory, tokenizer)
        ids = torch.tensor([[token for token, _, _ in tokens]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        for place, (token, kind, turn) in enumerate(tokens):
            if kind is not None:
                weight = weights[index][turn] if weights and kind == "action" else 1.0
                if weight is not None:
                    sums[kind] = sums[kind] - weight * log_probs[place - 1, token]
                    counts[kind] += 1
    return {kind: sums[kind] / counts[kind] for kind in sums if counts[kind]}
