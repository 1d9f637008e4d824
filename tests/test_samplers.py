"""The order of a data set depends on seed and epoch, and on nothing that was drawn before."""

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from datasets import IterableDataset
from resume_tools import trainer_of
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from trainers.checkpoints.samplers import SeededByEpoch, seeded_by_epoch
from trainers.checkpoints.stream import EndlessStream


def samplers():
    rows = range(12)
    return {
        "prompts": RepeatSampler(rows, mini_repeat_count=2, batch_size=3, seed=5),
        "lengths": LengthGroupedSampler(2, lengths=[3 * n % 7 + 1 for n in rows]),
        "rows": RandomSampler(rows),
    }


def arguments(**more):
    return TrainingArguments("out", use_cpu=True, bf16=False, seed=5, **more)


@pytest.mark.parametrize("name", samplers())
def test_an_epochs_order_is_its_own_whatever_came_before(name):
    sampler, again = (seeded_by_epoch(samplers()[name], arguments()) for _ in range(2))
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        torch.rand(3)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(len(order) == len(sampler) for order in epochs)
    again.set_epoch(2)
    assert list(again) == epochs[2]


def test_in_the_first_epoch_it_is_trls_order_of_prompts_and_accelerates_of_rows():
    ours = [list(seeded_by_epoch(samplers()[name], arguments())) for name in ("prompts", "rows")]
    torch.manual_seed(5)  # which Accelerate looks for
    of_trainer = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    loader = of_trainer.prepare(DataLoader(range(12), sampler=samplers()["rows"]))
    assert ours == [list(samplers()["prompts"]), [batch.item() for batch in loader]]


def test_rows_are_ordered_by_data_seed_where_there_is_one():
    order = {seed: list(seeded_by_epoch(samplers()["rows"], arguments(data_seed=seed))) for seed in (None, 5, 6)}
    assert order[None] == order[5] != order[6]


def test_what_does_not_shuffle_stays_as_it_is():
    in_order = RepeatSampler(range(12), mini_repeat_count=2, batch_size=3, shuffle=False)
    for sampler in (in_order, SequentialSampler(range(3)), None):
        assert seeded_by_epoch(sampler, arguments()) is sampler
    assert isinstance(seeded_by_epoch(RandomSampler(range(3)), arguments()), SeededByEpoch)


def stream(num_rows=4):
    data = IterableDataset.from_generator(lambda: ({"row": row} for row in range(num_rows)))
    data = data.shuffle(seed=0, buffer_size=10)
    as_trl = DataLoaderConfiguration(dispatch_batches=False)
    accelerator = Accelerator(cpu=True, dataloader_config=as_trl)
    return EndlessStream(accelerator.prepare(DataLoader(data, batch_size=2)))


def test_a_stream_goes_on_in_another_order_when_it_ends_and_takes_no_random_number():
    before = torch.get_rng_state()
    batches = [batch["row"].tolist() for batch, _ in zip(stream(), range(20), strict=False)]
    assert torch.equal(torch.get_rng_state(), before)
    passes = [batches[start] + batches[start + 1] for start in range(0, 20, 2)]
    assert all(sorted(rows) == [0, 1, 2, 3] for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 1


def test_a_stream_without_a_batch_is_an_error_and_not_a_run_without_end():
    with pytest.raises(ValueError, match="a stream without a batch"):
        next(iter(stream(0)))


def test_a_micro_batch_that_is_left_over_at_the_end_of_a_stream_is_a_part_of_the_next_step(tmp_path):
    """14 rows, 2 in a micro-batch, 2 micro-batches a step: the fourth step has the last rows and the first."""
    trainer = trainer_of("weighted: stream", tmp_path / "out", max_steps=4, save_strategy="no")
    seen, weighed = [], trainer._weighed

    def recorded(batches, *, update):
        seen.append(sum(len(batch["input_ids"]) for batch in batches))
        return weighed(batches, update=update)

    trainer._weighed = recorded
    trainer.train()
    assert seen == [4, 4, 4, 4]
