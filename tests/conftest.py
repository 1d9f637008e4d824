"""A tiny real model, its tokenizer and small data sets, built once per session."""

import os
import sys
from pathlib import Path

import pytest
from exact_on_cpu import EXACT_ON_CPU

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `recipes`, which is not installed

import datasets  # noqa: F401  its log handler keeps the stderr of its import, which a test's capture closes
from transformers import Qwen2ForCausalLM

from recipes.quickstart.tiny_model import build_model, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer([" + ", " =", " Answer: "])


@pytest.fixture
def model(tokenizer):
    return build_model(tokenizer, seed=0)


@pytest.fixture
def saved_model(model, tokenizer, tmp_path):
    """The same model, loaded from a folder, where TRL finds the reference model of beta > 0 too."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return Qwen2ForCausalLM.from_pretrained(tmp_path / "model")


@pytest.fixture
def folder(saved_model):
    """Where that model and its tokenizer are."""
    return saved_model.name_or_path


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Trainers write to their working directory; keep it out of the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cpu_args():
    return dict(EXACT_ON_CPU)
