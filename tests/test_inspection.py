"""`online-sft inspect`: what it shows is what the trainer trains on, and each finding is found."""

import copy
import io
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from online_sft import WeightedSFTConfig, WeightedSFTTrainer, cli
from online_sft.inspection import Inspection, Row, Summary, print_inspection, runs_of, tokens_of, visible
from online_sft.inspection_page import html_page
from trainers.inspection import _DATA_FIELDS, inspect_dataset, texts_of
from trainers.options import WeightedSFTOptions

EOS = 1  # of the tokenizer in conftest.py
GOOD = {"input_ids": [2, 3, 4, EOS], "labels": [-100, 3, 4, EOS], "advantages": 1.0}
LENGTHS = (
    "Columns of different lengths in {}, which the trainer refuses: every column needs one entry per token, 0 where a "
    "token carries no loss."
)
NUMBERS = (
    "Missing or non-finite numbers in {}, which the trainer refuses: remove the rows, or put finite numbers there."
)
ALL_ZERO = "Weight 0 on every loss token of {}: nothing is learned there. Check the advantages, or drop such rows."
MASKED_EOS = "EOS ends {} without being trained: extend the labels or masks to it, with a weight other than 0."


@pytest.fixture
def inspected(tokenizer, cpu_args):
    """Inspects rows, with options of WeightedSFTConfig."""

    def inspect(rows, tokenizer=tokenizer, **options):
        data, args = Dataset.from_list(rows, on_mixed_types="use_json"), WeightedSFTConfig(**cpu_args, **options)
        return inspect_dataset(data, args, copy.deepcopy(tokenizer), num_shown=5)

    return inspect


def found(inspection):
    return {finding.sentence: finding.rows for finding in inspection.findings}


def plain(inspection):
    console = Console(file=io.StringIO(), width=200)
    print_inspection(inspection, console)
    return console.file.getvalue()


def row_of(weights, num_kept=None):
    """A row of one token per weight, None where there is no loss."""
    loss = torch.tensor([weight is not None for weight in weights])
    numbers = torch.tensor([weight or 0.0 for weight in weights])
    return Row(0, torch.arange(len(weights)), loss, numbers, len(weights) if num_kept is None else num_kept)


def inspection_of(weights, texts, num_kept=None):
    row = row_of(weights, num_kept)
    return Inspection([], Summary.of(1, [row]), {0: tokens_of(row, texts)}, [])


def test_nothing_looks_wrong_with_good_rows(inspected):
    inspection = inspected([GOOD, {**GOOD, "advantages": -2.0}])
    assert found(inspection) == {}
    assert "Nothing looks wrong." in plain(inspection)


@pytest.mark.parametrize(
    ("bad", "sentence", "detail"),
    [
        ({"advantages": [1.0, 1.0]}, LENGTHS, "4 tokens, 2 advantages"),
        ({"labels": [-100, 3, 4, EOS, 5]}, LENGTHS, "4 tokens, 5 labels"),
        ({"labels": [2, 3], "advantages": [1.0] * 5}, LENGTHS, "4 tokens, 2 labels, 5 advantages"),
        ({"advantages": float("nan")}, NUMBERS, "advantages nan"),
        ({"advantages": None}, NUMBERS, "advantages None"),
        ({"input_ids": [], "labels": []}, NUMBERS, "no token"),
        ({"labels": [-100] * 4}, "No loss token in {}: nothing is learned there. Check the labels or masks.", ""),
        ({"advantages": [5.0, 0.0, 0.0, 0.0]}, ALL_ZERO, ""),
        ({"labels": [-100, 3, 4, -100]}, MASKED_EOS, ""),
        ({"advantages": [1.0, 1.0, 1.0, 0.0]}, MASKED_EOS, ""),
        ({"input_ids": [2, 3, EOS, 5], "labels": [-100, 3, -100, -100]}, MASKED_EOS, ""),
    ],
)
def test_a_bad_row_among_good_ones_is_the_only_finding(inspected, bad, sentence, detail):
    assert found(inspected([GOOD, {**GOOD, **bad}, GOOD])) == {sentence.format("1 row"): {1: detail}}


def test_every_list_of_numbers_is_checked(inspected):
    lists = [([1.0] * 4, [-1.0] * 3), ([0.0, float("inf"), 1.0, 1.0], [-1.0] * 4), ([1.0] * 4, [-1.0] * 4)]
    rows = [{**GOOD, "advantages": advantages, "ref_log_probs": log_probs} for advantages, log_probs in lists]
    assert found(inspected(rows)) == {
        LENGTHS.format("1 row"): {0: "4 tokens, 3 ref_log_probs"},
        NUMBERS.format("1 row"): {1: "advantages inf at token 1"},
    }


def test_all_rows_that_the_trainer_refuses_are_found_and_the_rest_is_inspected(inspected):
    inspection = inspected([{**GOOD, "advantages": [1.0] * n} for n in (4, 3, 4, 5, 2)])
    details = {1: "4 tokens, 3 advantages", 3: "4 tokens, 5 advantages", 4: "4 tokens, 2 advantages"}
    assert found(inspection) == {LENGTHS.format("3 rows"): details}
    assert list(inspection.shown) == [0, 2]
    assert inspection.summary.lines()["rows"] == "5, 2 of them trained on"
    assert "Row 0 (4 tokens, 1 advantages)." in plain(inspected([{**GOOD, "advantages": [1.0]}]))


@pytest.mark.parametrize("column", ["loss_mask", "completion_mask", "assistant_masks"])
def test_masks_are_checked_like_labels(inspected, column):
    rows = [{"input_ids": [2, 3, EOS], "advantages": 1.0, column: mask} for mask in ([0, 1, 1], [0, 1], [0, -100, 1])]
    assert found(inspected(rows)) == {
        LENGTHS.format("1 row"): {1: f"3 tokens, 2 {column}"},
        "Masks that hold something other than 0 and 1 in 1 row, which the trainer refuses: write 1 on loss tokens and "
        "0 elsewhere. A column that holds -100 or the token itself is `labels`.": {2: f"-100 in {column}"},
    }


def test_columns_that_the_trainer_does_not_read_are_not_checked(inspected):
    unread = {"reward": None}
    assert found(inspected([{**GOOD, **unread}])) == {}
    assert found(inspected([{**GOOD, "advantages": float("nan")}], use_advantage_weighting=False)) == {}
    masked = {"input_ids": [2, 3, EOS], "completion_mask": [7], "advantages": 1.0}
    assert found(inspected([masked], completion_only_loss=False)) == {}


def test_rewards_are_checked_where_a_weighting_reads_them(inspected):
    rows = [{"input_ids": GOOD["input_ids"], "labels": GOOD["labels"], "reward": r} for r in (1.0, None, 0.5)]
    assert found(inspected(rows, weighting="reward")) == {NUMBERS.format("1 row"): {1: "reward None"}}


def test_no_trained_eos_at_all_is_told(inspected):
    sentence = (
        "No row trains EOS (token 1) with a positive weight: the model will not learn to stop. End the completions in "
        "EOS, as a loss token, or name the token that ends them with --eos_token."
    )
    without = {"input_ids": [2, 3, 4], "labels": [-100, 3, 4], "advantages": 1.0}
    assert found(inspected([without, {**GOOD, "advantages": -1.0}])) == {sentence: {}}
    assert found(inspected([without, GOOD])) == {}
    assert found(inspected([without], tokenizer=None)) == {}
    long = {"input_ids": [2, 3, 4, 5, EOS], "labels": [2, 3, 4, 5, EOS], "advantages": [1.0, 1.0, 1.0, 0.0, 1.0]}
    assert sentence in found(inspected([long], max_length=4))


def test_double_bos_is_found(inspected, tokenizer):
    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = "9"
    bos = with_bos.bos_token_id
    rows = [{**GOOD, "input_ids": [*start, 4, EOS]} for start in ([bos, 5], [bos, bos], [5, bos], [bos, bos])]
    sentence = "Two BOS tokens start 2 rows: remove the one in the text, which the tokenizer adds as well."
    assert found(inspected(rows, tokenizer=with_bos)) == {sentence: {1: "", 3: ""}}
    assert found(inspected(rows)) == {}


def test_weights_that_truncation_cuts_are_counted(inspected):
    rows = [
        {"input_ids": [2, 3, EOS, 5, 6], "labels": [-100, 3, EOS, 5, 6], "advantages": [0.0, 1.0, 1.0, 0.0, -3.0]},
        {"input_ids": [2, 3, 4, 5, EOS], "labels": [-100, -100, -100, 5, EOS], "advantages": 1.5},
        {"input_ids": [2, 3, EOS, 5], "labels": [-100, 3, EOS, -100], "advantages": 1.0},  # loses nothing
    ]
    inspection = inspected(rows, max_length=3)
    assert found(inspection) == {  # 3 + 2 * 1.5 of 5 + 3 + 2
        "max_length=3 cuts 3 tokens with a weight from 2 rows, 60.0 % of the sum of |weight|. Dropped, without a loss "
        "token left: 1 row. Raise max_length, or shorten such rows.": {0: "1 token", 1: "2 tokens"}
    }
    assert runs_of(inspection.shown[0]) == "1 token without loss, 2 tokens x 1.0, 2 tokens cut"
    assert runs_of(inspection.shown[1]) == "5 tokens cut"
    assert inspection.summary.lines()["rows"] == "3, 2 of them trained on"
    assert inspection.summary.num_tokens == 6
    assert found(inspected(rows, max_length=5)) == {}


def test_packing_cuts_under_one_strategy_only_and_drops_nothing(inspected):
    rows = [GOOD, {"input_ids": [2, 3, 4, 5, EOS], "labels": [-100, -100, -100, -100, EOS], "advantages": 1.0}]
    cut = inspected(rows, max_length=4, packing=True, packing_strategy="bfd")
    assert runs_of(cut.shown[1]) == "4 tokens without loss, 1 token cut"
    assert [*found(cut).values()] == [{1: "1 token"}]
    for strategy in ("bfd_split", "wrapped"):
        assert found(inspected(rows, max_length=4, packing=True, packing_strategy=strategy)) == {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 4},
        {"align": "source"},
        {"advantage_normalization": "sequence", "max_length": 4},
        {"advantage_normalization": "batch", "advantage_clipping": [-0.5, 1.0]},
        {"weighting": "rejection", "weighting_kwargs": {"threshold": 0.5}},
        {"weighting": "exponential", "target_ess": 0.6},
        {"completion_only_loss": False},
    ],
)
def test_what_is_shown_is_what_the_trainer_trains_on(inspected, model, tokenizer, cpu_args, options):
    """Ids, and the weights of all rows as one optimizer step."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate((6, 3, 5, 2)):
        row = {"input_ids": torch.randint(2, 12, (length,), generator=generator).tolist(), "reward": number % 2 / 1}
        row["completion_mask"] = [0] + [1] * (length - 1)
        if "weighting" not in options:
            row["advantages"] = torch.randn(length, generator=generator).tolist()
        rows.append(row)
    kept = [[token for token in tokens if not token.is_cut] for tokens in inspected(rows, **options).shown.values()]
    shown = {tuple(t.token_id for t in tokens): torch.tensor([t.weight or 0.0 for t in tokens]) for tokens in kept}

    args = WeightedSFTConfig(**cpu_args, per_device_train_batch_size=8, **options)
    trainer = WeightedSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    (batch,), _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    columns = zip(batch["input_ids"], batch["advantages"], batch["attention_mask"].bool(), strict=True)
    assert_close(shown, {tuple(ids[real].tolist()): weights[real] for ids, weights, real in columns})


def test_rows_keep_their_numbers_where_a_weighting_drops_some(inspected):
    tokens = {number: [2, number, EOS] for number in range(4, 8)}
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]], "reward": number % 2 / 1} for number, ids in tokens.items()]
    inspection = inspected(rows, weighting="rejection", weighting_kwargs={"threshold": 0.5})
    assert {number: shown[1].token_id for number, shown in inspection.shown.items()} == {1: 5, 3: 7}


def test_lists_of_text_rows_may_be_as_long_as_the_tokens_or_the_loss_tokens(inspected):
    lists = ([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0, 3.0])
    rows = [{"prompt": "1 + 1 =", "completion": " Answer: 2", "advantages": advantages} for advantages in lists]
    rows = [{**row, "ref_log_probs": [-1.0] * length} for row, length in zip(rows, (7, 7, 7, 3), strict=True)]
    inspection = inspected(rows)
    details = {2: "7 tokens, 2 advantages", 3: "7 tokens, 3 ref_log_probs"}
    assert found(inspection) == {LENGTHS.format("2 rows"): details}
    for number in (0, 1):
        tokens = inspection.shown[number]
        assert [token.text for token in tokens] == ["1", " + ", "1", " =", " Answer: ", "2", "<|end|>"]
        assert [token.weight for token in tokens] == [None] * 4 + [1.0, 2.0, 3.0]


def test_chat_template_and_weights_of_messages_are_used(inspected, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    messages = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2", "weight": -0.5}]
    rows = [{"prompt": messages[:1], "completion": messages[1:]}]
    inspection = inspected(rows, chat_template_path=str(tmp_path / "chat.jinja"))
    assert runs_of(inspection.shown[0]) == "4 tokens without loss, 2 tokens x -0.5"


def test_text_field_and_eos_token_are_used(inspected):
    inspection = inspected([{"body": "1 + 1", "advantages": 1.0}], dataset_text_field="body", eos_token="9")
    assert [token.text for token in inspection.shown[0]] == ["1", " + ", "1", "9"]
    assert found(inspection) == {}


def test_every_option_of_ours_is_known_to_change_the_data_or_not():
    of_the_loss = {"importance_max", "loss_denominator", "loss_denominator_value", "temperature"}
    of_the_loss |= {"negative_log_prob_floor", "lm_head", "lm_head_chunk_size"}
    assert {option.name for option in fields(WeightedSFTOptions)} - set(_DATA_FIELDS) == of_the_loss


def test_the_summary_by_hand():
    rows = [row_of([None, 1.0, -1.0, 0.0]), row_of([None, None, 2.0, 7.0], num_kept=3)]
    assert Summary.of(2, rows).lines() == {
        "rows": "2",
        "tokens": "7",
        "loss tokens": "4 (57.1 % of the tokens)",
        "with a weight": "3",
        "weight": "min -1.0, mean 0.5, max 2.0",
        "negative weight": "25.0 % of the sum of |weight|",
        "effective sample size": "66.7 % of the loss tokens",  # 4^2 / (1 + 1 + 4) of 4
    }


def test_notes_say_what_the_numbers_leave_out(inspected):
    assert inspected([GOOD]).notes == []
    assert inspected([GOOD], tokenizer=None).notes == [
        "EOS and BOS are not looked at: set --model_name_or_path to the model to train."
    ]
    normalised, weighted = inspected([GOOD], advantage_normalization="batch", policy_weighting="dft").notes
    assert "advantage_normalization=batch sees only the optimizer steps so far" in normalised
    assert "policy_weighting=dft multiplies these weights" in weighted


def test_colours_in_the_terminal_grow_with_the_weight():
    inspection = inspection_of([None, 2.0, 1.0, -2.0, 0.0, 1.0], list("abcdef"), num_kept=5)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    print_inspection(inspection, console)
    green, pale_green, red = "30;48;2;70;190;90", "30;48;2;142;215;152", "30;48;2;235;85;85"
    styles = {"a": "38;5;244", "b": green, "c": pale_green, "d": red, "e": "4", "f": "9;38;5;244"}
    expected = "".join(f"\x1b[{style}m{letter}\x1b[0m" for letter, style in styles.items())
    assert console.file.getvalue().splitlines()[1] == expected


def test_long_lists_are_cut_short(inspected):
    inspection = inspected([{**GOOD, "advantages": [1.0]}] * 30)
    assert "Rows 0 (4 tokens, 1 advantages), 1 (" in plain(inspection)
    assert "4 (4 tokens, 1 advantages) and 25 more." in " ".join(plain(inspection).split())
    assert "19 (4 tokens, 1 advantages) and 10 more.</b></li>" in html_page(inspection)
    runs = runs_of(tokens_of(row_of([float(t) for t in range(22)]), ["a"] * 22))
    assert runs.endswith("1 token x 19.0, and 2 more runs")


def test_hostile_text_is_made_visible_and_cannot_format_the_terminal():
    assert visible("a\n\x1b[31m\t\u202e b") == "a⏎\\x1b[31m\\t\\u202e b"
    text = plain(inspection_of([None, 1.0], ["[bold red]", "\x1b[2J:smile:"]))
    assert text.splitlines()[1] == "[bold red]\\x1b[2J:smile:"


def test_the_page_escapes_text_and_loads_nothing():
    page = html_page(inspection_of([None, 1.5], ['<script>alert("1")</script>', "'\"><img src=x>\n"]))
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in page
    assert "&#x27;&quot;&gt;&lt;img src=x&gt;⏎\n</span>" in page
    assert all(reference not in page for reference in ("http", "url(", "@import", "<link", 'src="'))


def test_the_page_shows_weights_as_colours_and_on_pointing():
    page = html_page(inspection_of([None, 2.0, -1.0, 0.0, 1.0], list("abcde"), num_kept=4))
    for span in (
        '<span title="no loss, id 0, position 0" class="none">a</span>',
        '<span title="weight 2, id 1, position 1" class="positive" style="--strength: 0.700">b</span>',
        '<span title="weight -1, id 2, position 2" class="negative" style="--strength: 0.410">c</span>',
        '<span title="weight 0, id 3, position 3" class="zero">d</span>',
        '<span title="weight 1, id 4, position 4, cut" class="cut">e</span>',
    ):
        assert span in page


def test_sentencepiece_tokens_keep_the_space_before_a_word_and_unknown_ids_are_named():
    words = Tokenizer(WordLevel({"▁a": 0, "b": 1}, unk_token="b"))
    words.decoder = Metaspace()
    assert texts_of([0, 0, 1, 99], PreTrainedTokenizerFast(tokenizer_object=words)) == [" a", " a", "b", "<99>"]


def run(capsys, *arguments):
    """Exit code, stdout and the last line of stderr."""
    try:
        cli.main(["inspect", *arguments])
        code = 0
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return code, output.out, (output.err.splitlines() or [""])[-1]


def test_the_command_on_tokenised_rows_makes_no_folder(tmp_path, capsys):
    (tmp_path / "good.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, [GOOD, {**GOOD, "labels": [-100] * 4}])))
    code, out, _ = run(capsys, "good.jsonl")
    assert code == 0
    assert "2 3 4 1 \n1 token without loss, 3 tokens x 1.0\n" in out
    code, out, _ = run(capsys, "bad.jsonl", "--rows", "0", "--html", "page.html")
    assert code == 1
    assert "! No loss token in 1 row" in out and "row 0," not in out
    assert "No loss token in 1 row" in (tmp_path / "page.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"good.jsonl", "bad.jsonl", "page.html"}


def test_the_command_on_text_rows_uses_the_models_tokenizer(saved_model, tmp_path, capsys):
    rows = [{"prompt": "1 + 1 =", "completion": " Answer: 2", "advantages": -1.5}] * 2
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run(capsys, "text.jsonl", "--model_name_or_path", "model", "--max_length", "6", "--rows", "1")
    assert code == 1
    assert "1 + 1 = Answer: 2<|end|>\n4 tokens without loss, 2 tokens x -1.5, 1 token cut\n" in out
    assert "max_length=6 cuts 2 tokens with a weight from 2 rows, 33.3 %" in out
    assert "row 1," not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data: set --dataset_name"),
        (("text.jsonl",), "text rows need the tokenizer of the model to train: set --model_name_or_path"),
        (("text.jsonl", "--model_name_or_path", "./no-model"), "no-model"),
        (("text.jsonl", "--rows", "-1"), "rows must be 0 or more; got -1"),
        (("text.jsonl", "--dataset_streaming", "true"), "inspect reads all rows: set --dataset_streaming false"),
        (("ids.jsonl", "--html", "no/page.html"), "No such file or directory: 'no/page.html'"),
        (("ids.jsonl", "--assistant_only_loss", "true"), "the dataset is not conversational"),
        (("ids.jsonl", "--policy_weighting", "importance"), "needs a `ref_log_probs` column"),
    ],
)
def test_a_mistake_of_usage_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    (tmp_path / "text.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "completion": "2", "advantages": 1.0}))
    (tmp_path / "ids.jsonl").write_text(json.dumps(GOOD))
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("online-sft inspect: error: ") and message in error


def test_help_says_what_the_exit_codes_mean_and_loads_neither_torch_nor_transformers():
    check = "import sys; from online_sft.cli import main\ntry: main(['inspect', '--help'])\n"
    check += "finally: assert not {'torch', 'transformers', 'rich', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Exit code 1 if anything does, 2 if it cannot be told." in text
    assert "--html" in text and "--align" in text
