"""What a sharded run saves loads in plain transformers and PEFT, to the bit."""

import pytest
import saving_worker
import torch
from launching_tools import launch
from peft import PeftModel
from test_distributed_modes import models  # noqa: F401
from test_saved_models import logits
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


@pytest.mark.parametrize("mode", ["fsdp2", "zero3"])
def test_sharded_models_and_adapters_are_saved_whole_and_merged(mode, models):  # noqa: F811
    launch(mode, saving_worker.__file__, models, mode)
    saved = models / mode / "saved"
    whole = torch.load(saved / "whole.pt")
    full = AutoModelForCausalLM.from_pretrained(saved / "full")
    assert torch.equal(torch.cat([value.flatten() for value in full.parameters()]), whole["full"])

    base = AutoModelForCausalLM.from_pretrained(models / "model")
    adapted = PeftModel.from_pretrained(base, saved / "adapter", is_trainable=True)
    trained = [value.flatten() for value in adapted.parameters() if value.requires_grad]
    assert torch.equal(torch.cat(trained), whole["adapter"])
    assert not list((saved / "adapter").glob("model*")), "the adapter alone"
    merged = AutoModelForCausalLM.from_pretrained(saved / "merged")
    assert_close(logits(merged), logits(adapted))
    assert (logits(adapted) - logits(full)).abs().max() > 1e-2
    assert torch.equal(logits(merged), logits(adapted.merge_and_unload()))
