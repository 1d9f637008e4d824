"""A data set that is read as a stream, from where the run was."""

from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches

from trainers.engine.sampling import own_random_numbers

__all__ = ["EndlessStream"]


class EndlessStream:
    """The batches of a stream, and again from its beginning, as another epoch, when it ends.

    Trainer itself does not know where a stream ends: it loses its place in a second pass when it resumes, and adds the
    gradient of the last batches, if they make no whole step, to the first step of the next pass. Here they are a part
    of that step.

    Args:
        loader: of the stream, prepared by Accelerate.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.position = (0, 0)  # after the last whole step: passes, and batches of the next one
        self._reached = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        epoch, num_batches = self.position
        while True:
            loader = skip_first_batches(self._loader, num_batches) if num_batches else self._loader
            loader.set_epoch(epoch)
            is_empty = not num_batches
            for batch in _without_a_draw(loader):
                is_empty, num_batches = False, num_batches + 1
                self._reached = (epoch, num_batches)
                yield batch
            if is_empty:
                raise ValueError("the train_dataset is a stream without a batch")
            epoch, num_batches = epoch + 1, 0

    def end_step(self) -> None:
        """The step that the last batch was of has been made."""
        self.position = self._reached


def _without_a_draw(loader: Any) -> Iterator[Any]:
    """The batches; a DataLoader takes a random number when it begins, and a resumed run has more beginnings."""
    with own_random_numbers():
        batches = iter(loader)
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches
