"""A data set that is read as a stream, from where the run was."""

from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.engine.sampling import own_random_numbers

__all__ = ["EndlessStream"]


class EndlessStream(TrainerCallback):
    """The batches of a stream, and again from its beginning, as another epoch, when it ends.

    Trainer itself does not know where a stream ends: it loses its place in a second pass when it resumes, and adds the
    gradient of the last batches, if they make no whole step, to the first step of the next pass. Here they are a part
    of that step.

    Args:
        loader: of the stream, prepared by Accelerate.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.position = self._position_after_step = (0, 0)  # passes, and batches of the next one

    def __iter__(self) -> Iterator[Any]:
        epoch, num_batches = self.position
        while True:
            loader = skip_first_batches(self._loader, num_batches) if num_batches else self._loader
            loader.set_epoch(epoch)
            is_empty = not num_batches
            for batch in _without_a_draw(loader):
                is_empty, num_batches = False, num_batches + 1
                self._position_after_step = (epoch, num_batches)
                yield batch
            if is_empty:
                raise ValueError("the train_dataset is a stream without a batch")
            epoch, num_batches = epoch + 1, 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.position = self._position_after_step
        state.epoch = state.global_step / state.max_steps  # a resume does not begin it again


def _without_a_draw(loader: Any) -> Iterator[Any]:
    """The batches; a DataLoader takes a random number when it begins, and a resumed run has more beginnings."""
    with own_random_numbers():
        batches = iter(loader)
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches
