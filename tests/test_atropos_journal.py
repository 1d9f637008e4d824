import random
import signal
import subprocess
import sys
import time

import pytest

from online_sft.atropos.journal import Journal, JournalBusyError, JournalError, num_entries, read_entry


@pytest.fixture
def opened(tmp_path):
    """Opens the journal of the folder; closes whatever is open at the end."""
    journals = []

    def open_journal():
        for journal in journals:
            journal.close()
        journals.append(Journal(tmp_path / "journal"))
        return journals[-1]

    yield open_journal
    for journal in journals:
        journal.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


def entries_of(folder, start=0):
    return (read_entry(folder, index) for index in range(start, num_entries(folder)))


WRITER = """
import sys
from online_sft.atropos.journal import Journal
journal = Journal(sys.argv[1])
while True:
    index = len(journal)
    journal.append(bytes([index % 256]) * (200_000 + index), policy_version=2 * index)
    print(index, flush=True)
"""


def test_entries_come_back_in_order_with_their_policy_version(opened, folder):
    journal = opened()
    assert [journal.append(body, policy_version=v) for body, v in ((b"{}", 3), (b"", 3), (b"a\nb\x00", 4))] == [0, 1, 2]
    again = opened()
    assert len(again) == 3
    found = [(entry.index, entry.body, entry.policy_version) for entry in entries_of(folder)]
    assert found == [(0, b"{}", 3), (1, b"", 3), (2, b"a\nb\x00", 4)]
    assert [entry.index for entry in entries_of(folder, 2)] == [2]
    assert again.append(b"x", policy_version=5) == 3


DAMAGES = {
    "cut": lambda b: b[:-1],
    "longer": lambda b: b + b"x",
    "another byte": lambda b: b[:-1] + b"x",
    "empty": lambda b: b"",
    "no header": lambda b: b"[]\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_named_and_those_before_it_are_read(opened, folder, damage):
    journal = opened()
    for body in (b"first", b"second"):
        journal.append(body, policy_version=0)
    path = folder / "00000001.batch"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    entries = entries_of(folder)
    assert next(entries).body == b"first"
    with pytest.raises(JournalError, match=r"00000001.batch is damaged"):
        next(entries)


def test_a_missing_entry_is_named(opened, folder):
    journal = opened()
    for _ in range(3):
        journal.append(b"x", policy_version=0)
    (folder / "00000001.batch").unlink()
    for _ in range(2):  # the second time not "another process": the lock was given back
        with pytest.raises(JournalError, match="entry 1 of the journal"):
            opened()


def test_two_processes_cannot_write_to_one_journal(opened, folder):
    opened()
    with pytest.raises(JournalBusyError, match="another process writes"):
        Journal(folder)
    opened()


def test_an_entry_that_was_whole_but_not_renamed_is_taken_over_and_half_of_one_is_not(opened, folder, caplog):
    journal = opened()
    journal.append(b"first", policy_version=0)
    journal.append(b"second", policy_version=7)
    (folder / "00000001.batch").rename(folder / "00000001.part")
    opened()
    assert [(entry.body, entry.policy_version) for entry in entries_of(folder)] == [(b"first", 0), (b"second", 7)]
    (folder / "00000001.batch").rename(folder / "00000001.part")
    with (folder / "00000001.part").open("r+b") as file:
        file.truncate(90)
    assert len(opened()) == 1
    assert "00000001.part was not written to its end" in caplog.text
    assert not list(folder.glob("*.part"))


def test_whatever_was_acknowledged_survives_a_kill_at_any_moment(opened, folder):
    rng, acknowledged = random.Random(0), -1
    opened().close()
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        printed = [writer.stdout.readline()]
        time.sleep(rng.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        printed += writer.communicate()[0].split("\n")[:-1]
        acknowledged = int(printed[-1])
        journal = opened()
        entries = list(entries_of(folder))
        assert len(entries) in (acknowledged + 1, acknowledged + 2)  # the last may be kept, but not yet said to be
        for index, entry in enumerate(entries):
            assert entry.body == bytes([index % 256]) * (200_000 + index)
            assert entry.policy_version == 2 * index
        journal.close()
    assert acknowledged > 8
