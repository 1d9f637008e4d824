"""The documentation: what it shows runs, what it quotes is said, what it names exists, and the site builds alone."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from itertools import product

import pytest
import trl
from documented_blocks import ROOT, blocks_of, leave_a_quickstart, run

import online_sft
from online_sft import cli, launching
from online_sft import train as train_command
from online_sft.metric_reference import METRICS, metric_of
from trainers.online_sft_config import _OF_GRPOS_LOSS
from trainers.trajectories import commands, options

PAGES = sorted((ROOT / "docs").glob("*.md"))
SOURCES = [path for folder in ("online_sft", "trainers") for path in (ROOT / folder).rglob("*.py")]
CONFIGS = (online_sft.OnlineSFTConfig, online_sft.WeightedSFTConfig, online_sft.TrajectorySFTConfig)
ARGUMENTS = (
    *(cli.InspectArguments, cli.RewardArguments, cli.VerifyArguments, launching.DataArguments),
    *(train_command.TaskArguments, commands.CollectArguments, commands.EnvironmentArguments),
    *(commands.EvaluationArguments, options.SamplingOptions, trl.ModelConfig),
)
FIELDS = {field.name: field for config in (*CONFIGS, *ARGUMENTS) for field in fields(config)}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "convert"], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, saved_model, tmp_path, monkeypatch):
    """That of convert.md is run by tests/test_convert.py, which looks at what it prints."""
    monkeypatch.syspath_prepend(tmp_path)  # as for `python` in that folder
    leave_a_quickstart(tmp_path)
    run(blocks_of(page), page.name)


def test_every_quoted_message_is_said_by_the_program():
    messages = [block.text for block in blocks_of(ROOT / "docs" / "troubleshooting.md")]
    assert len(messages) > 30
    for message in messages:
        for part in message.split("…"):
            assert not part.strip() or is_said(" ".join(part.split())), part


def test_a_message_that_nobody_says_is_found():
    said = "a loss mask must hold 1 on loss tokens and 0 elsewhere; got 7. Atropos' `masks` hold -100 or the token"
    assert is_said(said)
    assert not is_said(said.replace("elsewhere", "in other places"))
    assert not is_said("row 3 of the train dataset has 7 advantages and 8 tokens; give one number per token")


@functools.cache
def templates():
    """The texts in the sources: tuples of what stands there, with None for what is filled in."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"(%[.\d]*[sdfg]|{\w*})", node.value)  # of logging, of str.format
                parts = [None if index % 2 else part for index, part in enumerate(parts)]
            else:
                continue
            found.add(tuple(part and re.sub(r"\s+", " ", part) for part in parts))
    return found


def is_said(words):
    """Whether they are a message, or the part of one between two places in what stands there."""
    return any(re.fullmatch(pattern, words) for template in templates() for pattern in windows(template, words))


def windows(template, words, least=12):
    """Patterns of the parts of a template that may be these words, and that fix a dozen characters in one place.

    A part begins with the template, or where the first dozen of the words stands in it; it ends likewise.
    """
    texts = [(i, part) for i, part in enumerate(template) if part]
    begins = {(0, 0)} | {(i, part.find(words[:least])) for i, part in texts if words[:least] in part}
    ends = {(len(template) - 1, None)}
    ends |= {(i, part.rfind(words[-least:]) + least) for i, part in texts if words[-least:] in part}
    for (first, start), (last, stop) in product(begins, ends):
        window = list(template[first : last + 1])
        if window and window[-1]:
            window[-1] = window[-1][:stop].rstrip()
        if window and window[0]:
            window[0] = window[0][start:].lstrip()
        if any(part and len(part) >= least and part in words for part in window):
            yield "".join(".*" if part is None else re.escape(part) for part in window)


def tables_of(page):
    """The rows of the tables of a page, as lists of cells, less the lines below the headers."""
    for line in page.read_text().splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_every_name_that_migration_leads_to_exists():
    cells = [row[1] for row in tables_of(ROOT / "docs" / "migration.md")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 100
    assert not [name for name in names if not exists(name)]


def exists(name):
    """A field, a field=choice, a class or function of the package, a member of one, a value of a field, a command."""
    if name.startswith("python -m "):
        return importlib.util.find_spec(name.removeprefix("python -m ")) is not None
    field, _, value = name.partition("=")
    if value:
        return field in FIELDS and value in (FIELDS[field].metadata.get("choices") or ("true", "false"))
    owner, _, member = name.partition(".")
    if owner in online_sft.__all__:
        return not member or hasattr(getattr(online_sft, owner), member)
    choices = {choice for field in FIELDS.values() for choice in field.metadata.get("choices") or ()}
    return name in FIELDS or name in choices or name in online_sft.PATTERNS or name in OTHER_NAMES


# keys of results, and arguments of functions
OTHER_NAMES = {"token_losses", "weighted_losses", "...", 'average="tokens"', "environments", "args", "processing_class"}


def test_migration_names_every_option_that_is_refused():
    text = (ROOT / "docs" / "migration.md").read_text()
    refused = text[text.index("### Refused") : text.index("## From TRL's SFTTrainer")]
    rows = [line.split("|")[1] for line in refused.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(_OF_GRPOS_LOSS)


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ("convert", "log")], ids=lambda page: page.stem)
def test_every_name_with_underscores_stands_in_the_code(page):
    """Not what others call so: in convert.md and in the first column of the migration tables. The log is past."""
    text = re.sub(r"^\|[^|]*\|", "", page.read_text(), flags=re.M) if page.stem == "migration" else page.read_text()
    assert sorted(set(re.findall(r"`([a-z]\w*_\w+)`", text)) - words_of_the_code()) == []


@functools.cache
def words_of_the_code():
    texts = [path.read_text() for path in SOURCES] + [field.metadata.get("help", "") for field in FIELDS.values()]
    texts += [path.name for path in (ROOT / "recipes").rglob("*.*")]
    return {word for text in texts for word in re.findall(r"\w+", text)} | set(FIELDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_metric_that_a_page_names_is_in_the_reference(page):
    families = {name.split("/")[0] for name in METRICS if "/" in name and not name.startswith("{")}
    for name in re.findall(r"`((?:eval_)?(?:[a-z]\w*)/[\w@]+)`", page.read_text()):
        if name.split("/")[0] in families:
            assert metric_of(name) is not None, name


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_with_every_page_and_no_hook_in_it(site):
    assert {page.stem for page in PAGES} <= {path.stem for path in site.glob("*.html")}
    assert (site / "recipes" / "accelerate" / "index.html").exists()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_search_works_from_disk(site):
    """Where browsers neither fetch an index nor start a worker."""
    assert "OnlineSFTConfig" in (site / "search" / "search_index.js").read_text()
    assert re.search(r'<script src="assets/iframe-worker\.js"', (site / "index.html").read_text())


@pytest.fixture
def hook():
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "_site" / "repository_pages.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


def test_links_and_nested_lists_are_rewritten_in_prose_and_not_in_code(hook):
    code = "```python\nfunctions[name](argument)\n  - 1\n```\n"
    prose = "![](images/a.png) [file](../setup.cfg) [page](vllm.md#faults) [table](../README.md#measured)\n  - nested\n"
    there = "![](../images/a.png) [file](../files/setup.cfg.md) [page](../vllm.md#faults) "
    there += "[table](../evidence.md#measured)\n    - nested\n"
    assert hook._for_the_site(code + prose, "docs/x.md", "y/z.md", {"measured": "evidence.md"}) == code + there


def test_a_section_of_the_readme_that_is_gone_stops_the_build(hook):
    with pytest.raises(ValueError, match=r"README\.md has no section #gone"):
        hook._section("gone")


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert 'class="mermaid"' not in page.read_text()  # of which the theme loads a library
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", tag), f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style.name


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links begin at the server's root
            continue
        for target in re.findall(r"<a\b[^>]*\shref=\"([^\"#?]+)", page.read_text()):
            if not re.match(r"https?:|mailto:", target):
                assert (page.parent / target).resolve().exists(), f"{page.relative_to(site)}: {target}"


@pytest.mark.slow
def test_the_reference_pages_have_every_field_and_every_metric(site):
    configuration = (site / "configuration.html").read_text()
    metrics = (site / "metrics.html").read_text()
    assert not [name for config in CONFIGS for name in names(config) if f"<code>{name}</code>" not in configuration]
    assert not [name for name in METRICS if f"<code>{name}</code>" not in metrics]
    assert "<code>2</code> (TRL: <code>8</code>)" in configuration
    assert "<!--" not in configuration.partition("<article")[2].partition("</article>")[0]


def names(config):
    return {field.name for field in fields(config)}
