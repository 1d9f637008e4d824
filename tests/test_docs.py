"""The documentation: what it quotes is what the program says, what it names exists, what it shows runs, and it builds."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import subprocess
import sys

import pytest
import trl
from documented_blocks import ROOT, blocks_of, leave_a_quickstart, run

import online_sft
from online_sft import cli, launching
from online_sft import train as train_command
from trainers.trajectories import commands, options

PAGES = sorted((ROOT / "docs").glob("*.md"))
SOURCES = [path for folder in ("online_sft", "trainers") for path in (ROOT / folder).rglob("*.py")]
CONFIGS = [online_sft.OnlineSFTConfig, online_sft.WeightedSFTConfig, online_sft.TrajectorySFTConfig]
ARGUMENTS = [
    *(cli.InspectArguments, cli.RewardArguments, cli.VerifyArguments, launching.DataArguments),
    *(train_command.TaskArguments, commands.CollectArguments, commands.EnvironmentArguments),
    *(commands.EvaluationArguments, options.SamplingOptions, trl.ModelConfig),
]


# --- what runs


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, saved_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # as for `python` in that folder
    leave_a_quickstart(tmp_path)
    run(blocks_of(page), page.name)


# --- what the program says


@functools.cache
def message_patterns():
    """Every text in the sources that somebody may read, with None for what is filled in."""
    templates = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            for placeholder in (r"%[.\d]*[sdfg]", r"{\w*}"):  # of logging, of str.format
                parts = [p for part in parts for p in (separated(part, placeholder) if part else [part])]
            if sum(map(len, filter(None, parts))) > 20:
                templates.add(tuple(parts))
    return templates


def separated(text, placeholder):
    pieces = re.split(placeholder, text)
    return [each for piece in pieces for each in (piece, None)][:-1]


def is_said(message):
    """Whether the message is one of the program's. An ellipsis at an end stands for any text; its neighbours do not."""
    begins, ends = message.startswith("…"), message.endswith("…")
    words = " ".join(message.strip("… ").split())
    for template in message_patterns():
        pattern = "".join(".+" if part is None else re.escape(" ".join_spaces(part)) for part in template)
        if re.search(pattern, words):
            return True
    return begins and ends
