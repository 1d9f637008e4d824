"""One weight column through every path: packed, padding-free, padded, truncated rows give the loss and the gradients of
one dense forward pass per sequence, whatever the advantages, masks, lengths, normalisation and denominator."""

import random
import statistics

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from online_sft import WeightedSFTConfig, WeightedSFTTrainer

MAX_LENGTH = 8
PATHS = {
    "padded": {},
    "padding_free": {"padding_free": True, "max_length": None},
    "bfd": {"packing": True, "packing_strategy": "bfd"},
    "bfd_split": {"packing": True, "packing_strategy": "bfd_split"},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
}


@st.composite
def ragged_rows(draw):
    """Two to eight rows of 1 to 14 tokens, some masked; advantages of both signs, some 0; one loss token at least."""
    generator = random.Random(draw(st.integers(0, 2**32)))
    rows = []
    for length in [draw(st.integers(2, 14)), *draw(st.lists(st.integers(1, 14), min_size=1, max_size=7))]:
        tokens = [generator.randrange(2, 10) for _ in range(length)]
        labels = [token if generator.random() < 0.7 else -100 for token in tokens]
        advantages = [0.0 if generator.random() < 0.3 else generator.gauss(0.0, 1.0) for _ in tokens]
        rows.append({"input_ids": tokens, "labels": labels, "advantages": advantages})
    rows[0]["labels"][1] = rows[0]["input_ids"][1]
    return rows


def sequences_of(rows, path):
    """What the model should see as separate sequences, after truncation or splitting."""
    if path == "padding_free":
        return rows
    if path == "wrapped":
        whole = {name: [x for row in rows for x in row[name]] for name in rows[0]}
        rows = [whole]
    pieces = []
    for row in rows:
        length = len(row["input_ids"]) if path in ("bfd_split", "wrapped") else MAX_LENGTH
        for start in range(0, length, MAX_LENGTH):
            pieces.append({name: values[start : start + MAX_LENGTH] for name, values in row.items()})
    return pieces


def z_scores(values):
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / (std + 1e-8) for value in values]


def dense_loss(model, pieces, *, normalisation, denominator, bounds):
    """-(1/D) sum A log p, one forward pass per sequence; and the size of its terms, (1/D) sum |A log p|."""
    tokens = [
        (i, t) for i, piece in enumerate(pieces) for t in range(1, len(piece["labels"])) if piece["labels"][t] != -100
    ]
    advantages = [pieces[i]["advantages"][t] for i, t in tokens]
    if normalisation == "batch" and tokens:
        advantages = z_scores(advantages)
    if normalisation == "sequence":
        advantages = [
            score
            for i in sorted({i for i, _ in tokens})
            for score in z_scores([a for a, (j, _) in zip(advantages, tokens, strict=True) if j == i])
        ]
    if bounds:
        advantages = [min(max(a, bounds[0]), bounds[1]) for a in advantages]
    total, scale = 0.0 * sum(p.sum() for p in model.parameters()), 0.0
    log_probs = [model(torch.tensor([piece["input_ids"]])).logits[0].log_softmax(-1) for piece in pieces]
    for (i, t), advantage in zip(tokens, advantages, strict=True):
        term = -advantage * log_probs[i][t - 1, pieces[i]["labels"][t]]
        total, scale = total + term, scale + abs(term.item())
    counts = {
        "tokens": len(tokens),
        "sequences": len({i for i, _ in tokens}),
        "abs_advantages": sum(map(abs, advantages)),
        "constant": 3.0,
    }
    return total / (counts[denominator] or 1), scale / (counts[denominator] or 1)


def step_loss(trainer, rows, micro_batch_size):
    """The loss of one optimizer step over all rows, from the data set to the last micro-batch."""
    args = trainer.args
    data = trainer._prepare_dataset(
        Dataset.from_list(rows), trainer.processing_class, args, args.packing, None, "train"
    )
    examples = list(data)
    starts = range(0, len(examples), micro_batch_size)
    micro_batches = [trainer.data_collator(examples[start : start + micro_batch_size]) for start in starts]
    weighed, denominator = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), torch.device("cpu"))
    trainer.model.train()
    return sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=denominator) for batch in weighed)


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_equal_to_a_millionth(ours, dense, scale, model):
    """float32 rounds each term, and terms of both signs cancel: 1e-6 of the sum of their sizes."""
    ours_grad, dense_grad = (gradients(loss, model).clone() for loss in (ours, dense))
    assert abs(ours.item() - dense.item()) <= 1e-6 * max(1.0, scale)
    assert (ours_grad - dense_grad).norm().item() <= 1e-6 * max(1.0, scale, dense_grad.norm().item())


def make_trainer(model, tokenizer, cpu_args, **options):
    args = WeightedSFTConfig(**{**cpu_args, "max_length": MAX_LENGTH, "shuffle_dataset": False, **options})
    rows = [{"input_ids": [2, 3, 4], "advantages": 1.0}]
    return WeightedSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("ignore:.*padding-free.*")
def test_every_path_has_the_loss_and_the_gradients_of_dense_sequences(model, tokenizer, cpu_args, path):
    trainers = {}

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(
        rows=ragged_rows(),
        micro_batch_size=st.integers(1, 4),
        normalisation=st.sampled_from(["none", "batch", "sequence"]),
        denominator=st.sampled_from(["tokens", "sequences", "abs_advantages", "constant"]),
        bounds=st.sampled_from([None, [-0.5, 1.0]]),
    )
    def check(rows, micro_batch_size, normalisation, denominator, bounds):
        if path in ("bfd_split", "wrapped"):  # which cut sequences to pieces
            normalisation = {"sequence": "batch"}.get(normalisation, normalisation)
            denominator = {"sequences": "tokens"}.get(denominator, denominator)
        options = {
            "advantage_normalization": normalisation,
            "loss_denominator": denominator,
            "advantage_clipping": bounds,
            **({"loss_denominator_value": 3.0} if denominator == "constant" else {}),
        }
        key = str(options)
        if key not in trainers:
            trainers[key] = make_trainer(model, tokenizer, cpu_args, **PATHS[path], **options)
        ours = step_loss(trainers[key], rows, micro_batch_size)
        dense, scale = dense_loss(
            model, sequences_of(rows, path), normalisation=normalisation, denominator=denominator, bounds=bounds
        )
        assert_equal_to_a_millionth(ours, dense, scale, model)

    check()
