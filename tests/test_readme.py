"""Every block of the README runs, in order, in one folder."""

import re

import pytest
from documented_blocks import ROOT, blocks_of, leave_a_quickstart, run

README = ROOT / "README.md"


def test_the_makefile_has_the_targets_that_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z-]+)", README.read_text())
    assert {"quickstart", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_every_block_runs(saved_model, tmp_path):
    leave_a_quickstart(tmp_path)
    run(blocks_of(README), "README.md")
