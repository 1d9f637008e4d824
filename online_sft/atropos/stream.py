"""The journal as a stream of batches: each entry is read, checked, and made into rows when the trainer asks for it."""

import logging
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from online_sft.atropos.batch import BatchReader, Quarantined, WeightedRow
from online_sft.atropos.fetcher import Fetcher
from online_sft.atropos.group import MalformedGroupError, ScoredGroup
from online_sft.atropos.journal import JournalError, num_entries, read_entry
from online_sft.atropos.json_reading import read_json
from online_sft.atropos.quarantine import Quarantine

__all__ = ["BatchStream", "StaleBatchesError", "StepBatch"]

logger = logging.getLogger(__name__)

_MOST_STALE = 20  # batches in a row


class StaleBatchesError(RuntimeError):
    """The environments sample from a policy that does not follow this one."""


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step trains on."""

    index: int  # of the journal's entry
    rows: list[WeightedRow]
    metrics: dict[str, float] = field(default_factory=dict)  # of this batch
    counts: dict[str, int] = field(default_factory=dict)  # since the process began


class BatchStream:
    """Batches of a journal in order: those that are there, and then those that the fetcher brings.

    Args:
        journal: its folder.
        reader: how groups become rows.
        quarantine: for groups that are not trained on.
        fetcher: brings more; None: the stream ends with the journal.
        position: the entry to begin with.
        max_quarantined: share of malformed groups of a batch, above which `take` raises.
        max_staleness: optimizer steps since a group was sampled, above which it is left out; None: no limit.

    Attributes:
        is_behind: the last `take` left a batch out that was delivered just now, because all of it was stale.
    """

    def __init__(
        self,
        journal: str | Path,
        reader: BatchReader,
        quarantine: Quarantine,
        fetcher: Fetcher | None,
        *,
        position: int = 0,
        max_quarantined: float = 1.0,
        max_staleness: int | None = None,
    ) -> None:
        self._journal, self._reader, self._quarantine, self._fetcher = journal, reader, quarantine, fetcher
        self._position = position
        self._max_quarantined, self._max_staleness = max_quarantined, max_staleness
        self._num_there = self._num_from_before = 0
        if fetcher is None:
            self._num_there = self._num_from_before = self._checked(num_entries(journal))
            if not self._num_there:
                raise JournalError(f"there is no batch in the journal {journal}")
        self._since: float | None = None
        self._num_stale_batches = 0  # in a row
        self.is_behind = False
        self.counts: Counter = Counter()

    def is_open(self, timeout_s: float) -> bool:
        """Whether it is known what the journal holds; waits for it. Until then another run may have its lock.

        Raises:
            FetcherError: it will never be.
        """
        if self._fetcher is not None and self._fetcher.num_delivered is None:
            self._fetcher.poll(timeout_s)
            if self._fetcher.num_delivered is None:
                return False
            self._num_there = self._num_from_before = self._checked(self._fetcher.num_delivered)
            if self._num_there > self._position:
                logger.warning(
                    "%d batches in the journal %s are there already, from an earlier run, and are trained on first; "
                    "for a run that begins anew choose another output_dir or atropos_journal",
                    self._num_there - self._position,
                    self._journal,
                )
        return True

    @property
    def is_over(self) -> bool:
        """Whether no batch will come any more."""
        return self._fetcher is None and self._position >= self._num_there

    def take(self, policy_version: int, timeout_s: float) -> StepBatch | None:
        """The next batch that can be trained on; None if it is not there in time.

        Args:
            policy_version: optimizer steps made.
            timeout_s: how long to wait.

        Raises:
            MalformedGroupError: more of a batch is malformed than `max_quarantined`.
            StaleBatchesError: many batches in a row are stale.
            FetcherError: none will come.
            JournalError: what the run has consumed is not there, or the batch is damaged.
        """
        self.is_behind = False
        now = time.monotonic()
        end, self._since = now + timeout_s, self._since or now
        while self._is_there(policy_version, end):
            batch = self._read(self._position, policy_version, waited=time.monotonic() - self._since)
            self._position += 1
            if batch.rows:
                self._since, self._num_stale_batches = None, 0
                return batch
            self.counts["unusable_batches"] += 1
            logger.warning("batch %d of %s is left out: none of its groups can be used", batch.index, self._journal)
            if self.is_behind:
                return None
        return None

    def close(self) -> None:
        """Lets the fetcher end."""
        if self._fetcher is not None:
            self._fetcher.close()

    def _is_there(self, policy_version: int, end: float) -> bool:
        is_late = False
        while self._fetcher is not None and self._position >= self._num_there and not is_late:
            if self._fetcher.num_delivered is not None:
                self._fetcher.ask(policy_version)
            left = end - time.monotonic()
            is_late = left <= 0
            self._fetcher.poll(max(left, 0.0))
            if self._fetcher.num_delivered is not None:
                self._num_there = self._checked(self._fetcher.num_delivered)
        return self._position < self._num_there

    def _checked(self, num_there: int) -> int:
        if num_there < self._position:
            raise JournalError(
                f"the journal {self._journal} holds {num_there} batches, and the run has consumed {self._position}; "
                "set atropos_journal to the journal of the run that is resumed"
            )
        return num_there

    def _read(self, index: int, policy_version: int, waited: float) -> StepBatch:
        started = time.monotonic()
        entry = read_entry(self._journal, index)
        raw = _groups_of(entry.body)
        groups, malformed = self._reader.groups(raw)
        self._quarantine.add(index, malformed)
        if malformed:
            self._warn(index, len(raw), malformed)
        staleness = {
            place: policy_version - group.policy_version
            for place, group in groups.items()
            if group.policy_version is not None
        }
        stale = self._stale(raw, staleness)
        self._quarantine.add(index, stale)
        for each in stale:
            del groups[each.group]
        if stale and not groups and index >= self._num_from_before:
            self._count_stale_batch()
        rows = self._with_loss([row for place, group in groups.items() for row in self._reader.rows(place, group)])
        metrics = {
            **_metrics(groups, rows),
            "atropos/seconds_rollout": waited,
            "atropos/seconds_advantages": time.monotonic() - started,
        }
        if staleness:
            metrics["atropos/staleness"] = float(np.mean(list(staleness.values())))
        self.counts["quarantined_groups"] = len(self._quarantine)
        counts = {**self.counts, **(self._fetcher.counts if self._fetcher is not None else {})}
        return StepBatch(index, rows, metrics, {f"atropos/{name}": count for name, count in counts.items()})

    def _count_stale_batch(self) -> None:
        self.is_behind = True
        self._num_stale_batches += 1
        if self._num_stale_batches >= _MOST_STALE:
            raise StaleBatchesError(
                f"{_MOST_STALE} batches in a row were sampled more than atropos_max_staleness={self._max_staleness} "
                "optimizer steps ago: the server that the environments sample from does not follow the policy. See "
                "that atropos_sync_url is that server, or raise atropos_max_staleness"
            )

    def _with_loss(self, rows: list[WeightedRow]) -> list[WeightedRow]:
        """The rows; none where max_length has left no token to train on."""
        num_cut = sum(row.is_cut for row in rows)
        if num_cut and not self.counts["cut_sequences"]:
            logger.warning(
                "%d of %d sequences of a batch are cut at max_length=%s, with their weights; atropos/cut_sequences "
                "counts them",
                num_cut,
                len(rows),
                self._reader.max_length,
            )
        self.counts["cut_sequences"] += num_cut
        return rows if any(row.is_loss[1:].any() for row in rows) else []

    def _warn(self, index: int, num_groups: int, malformed: list[Quarantined]) -> None:
        reasons = "; ".join(f"group {each.group}: {each.reason}" for each in malformed[:3])
        text = (
            f"{len(malformed)} of {num_groups} groups of batch {index} are malformed and kept in "
            f"{self._quarantine.path}: {reasons}{'; ...' if len(malformed) > 3 else ''}"
        )
        if len(malformed) > self._max_quarantined * num_groups:
            raise MalformedGroupError(
                f"{text}. That is a larger share than atropos_max_quarantined={self._max_quarantined:g}: mend the "
                "environment; the run resumes with this batch, and trains on what is left of it if you set the share "
                "to 1"
            )
        logger.warning("%s", text)

    def _stale(self, raw: list[Any], staleness: dict[int, int]) -> list[Quarantined]:
        if self._max_staleness is None:
            return []
        return [
            Quarantined(
                place, f"sampled {steps} optimizer steps ago; atropos_max_staleness={self._max_staleness}", raw[place]
            )
            for place, steps in staleness.items()
            if steps > self._max_staleness
        ]


def _groups_of(body: bytes) -> list[Any]:
    return read_json(body)["batch"]


def _metrics(groups: dict[int, ScoredGroup], rows: list[WeightedRow]) -> dict[str, float]:
    """Mean score over sequences, also of each environment; what is looked at to see whether a run learns."""
    if not groups:
        return {}
    metrics = {
        "score": float(np.mean(np.concatenate([group.scores for group in groups.values()]))),
        "atropos/sequences": len(rows),
        "atropos/groups": len(groups),
    }
    scores: dict[str, list[float]] = defaultdict(list)
    for group in groups.values():
        scores[f"score/env_{group.others.get('env_id')}"].extend(group.scores)
    if len(scores) > 1:
        metrics |= {name: float(np.mean(of_it)) for name, of_it in scores.items()}
    return metrics
