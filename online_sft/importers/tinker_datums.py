"""Datums of Tinker: tokens, and for the token that each of them predicts its weight, or its advantage and log-prob.

row: {"model_input": {"chunks": [{"type": "encoded_text", "tokens": [5, 7]}]},
      "loss_fn_inputs": {"target_tokens": {"data": [7, 9], "dtype": "int64", "shape": [2]},
                         "weights": {"data": [0.0, 1.0], "dtype": "float32", "shape": [2]}}}
https://tinker-docs.thinkingmachines.ai/tinker/losses, and tinker/types/datum.py of its version 0.38.0
"""

from collections.abc import Mapping, Sequence

from online_sft.importers.chats import Row

__all__ = ["read_datum"]

_READ = ("target_tokens", "weights", "advantages", "logprobs", "mask")


def read_datum(row: Row) -> Row:
    """{"input_ids", "labels", "advantages", and of "logprobs" "ref_log_probs"}, N + 1 entries each, for N tokens.

    Entry t of a Datum belongs to its target, the token that follows token t: to entry t + 1 here. The first token has
    no loss. A target is a label where its weight, or its advantage, is not 0; where there is a mask (or weights beside
    advantages), where that is 1. Then the sum of -advantages · log p is Tinker's `cross_entropy` (with weights), and
    the gradient of its `importance_sampling` at the policy that sampled (with advantages).

    Raises:
        ValueError: for other inputs of losses, lengths that differ, and targets that are not the tokens moved by one.
    """
    tokens = _tokens(row)
    others = _loss_inputs(row["loss_fn_inputs"], len(tokens))
    targets = _token_ids(others.pop("target_tokens"), "target_tokens")
    factors = others.pop("advantages" if "advantages" in others else "weights")
    log_probs = others.pop("logprobs", None)
    is_trained = _is_trained(factors, masks=others)
    for t, (target, following) in enumerate(zip(targets[:-1], tokens[1:], strict=True)):
        if is_trained[t] and target != following:
            raise ValueError(
                f"target_tokens[{t}] is {target}, but the token after token {t} is {following}: the targets of a Datum "
                "are its tokens moved by one"
            )
    made: Row = {
        "input_ids": [*tokens, targets[-1]],
        "labels": [-100, *(target if trained else -100 for target, trained in zip(targets, is_trained, strict=True))],
        "advantages": [0.0, *factors],
    }
    return made if log_probs is None else {**made, "ref_log_probs": [0.0, *log_probs]}


def _tokens(row: Row) -> list[int]:
    model_input = row.get("model_input")
    if (model_input is None) == (row.get("tokens") is None):
        raise ValueError("must have either model_input or tokens")
    if model_input is None:
        values = row["tokens"]
    else:
        chunks = model_input.get("chunks") if isinstance(model_input, Mapping) else None
        if not isinstance(chunks, list):
            raise ValueError(f'model_input must be {{"chunks": [...]}}; got {model_input!r:.80}')
        values = [token for index, chunk in enumerate(chunks) for token in _of_chunk(chunk, index)]
    if not isinstance(values, list) or not values:
        raise ValueError(f"must have a list of one token or more; got {values!r:.80}")
    return _token_ids(values, "tokens")


def _of_chunk(chunk: object, index: int) -> Sequence[object]:
    is_text = isinstance(chunk, Mapping) and chunk.get("type", "encoded_text") == "encoded_text"
    if not isinstance(chunk, Mapping) or not is_text or not isinstance(chunk.get("tokens"), list):
        raise ValueError(f"chunk {index} of model_input holds no tokens ({chunk!r:.80}); images cannot be read")
    return chunk["tokens"]


def _loss_inputs(inputs: object, num_tokens: int) -> dict[str, list[float]]:
    if not isinstance(inputs, Mapping):
        raise ValueError(f"loss_fn_inputs must be an object; got {inputs!r:.80}")
    given = {name: _values(name, value, num_tokens) for name, value in inputs.items() if value is not None}
    if unknown := [name for name in given if name not in _READ]:
        raise ValueError(f"loss_fn_inputs has {unknown[0]!r}, which cannot be read; known are {', '.join(_READ)}")
    if "target_tokens" not in given or not {"weights", "advantages"} & given.keys():
        raise ValueError(
            f"loss_fn_inputs must have target_tokens, and weights or advantages; it has {', '.join(given) or 'nothing'}"
        )
    return given


def _values(name: str, value: object, num_tokens: int) -> list[float]:
    """The entries of a TensorData or a plain list."""
    data, shape = value, None
    if isinstance(value, Mapping):
        data, shape = value.get("data"), value.get("shape")
        if value.get("sparse_crow_indices") is not None:
            raise ValueError(f"{name} is sparse, with several targets for a token; they cannot be read")
    if not isinstance(data, list):
        raise ValueError(f"{name} must be a list of numbers; got {data!r:.80}")
    if (isinstance(shape, list) and len(shape) > 1) or any(isinstance(entry, list) for entry in data):
        raise ValueError(f"{name} has several entries for a token (top-K distillation), which cannot be read")
    if len(data) != num_tokens:
        raise ValueError(f"{name} has {len(data)} entries for {num_tokens} tokens")
    for t, entry in enumerate(data):
        if not isinstance(entry, int | float):
            raise ValueError(f"{name}[{t}] must be a number; got {entry!r:.80}")
    return [float(entry) for entry in data]


def _token_ids(values: Sequence[object], name: str) -> list[int]:
    """tinker-cookbook has written targets as 7.0."""
    ids = []
    for t, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31 or value % 1:
            raise ValueError(f"{name}[{t}] must be a token id; got {value!r:.80}")
        ids.append(int(value))
    return ids


def _is_trained(factors: Sequence[float], masks: Mapping[str, Sequence[float]]) -> list[bool]:
    """Where all masks are 1. Tinker's losses do not read them: what they leave out must have the factor 0 already."""
    if not masks:
        return [factor != 0 for factor in factors]
    for name, mask in masks.items():
        for t, (factor, bit) in enumerate(zip(factors, mask, strict=True)):
            if bit not in (0, 1):
                raise ValueError(f"{name}[{t}] is {bit}; a mask holds 0 and 1")
            if factor and not bit:
                raise ValueError(f"token {t} has {factor} where {name} is 0; Tinker would train on it: set it to 0")
    return [all(bits) for bits in zip(*masks.values(), strict=True)]
