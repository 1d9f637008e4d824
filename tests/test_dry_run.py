"""`--dry_run` as a user types it: what it prints, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from online_sft import cli, train
from recipes.tiny_models import save_tiny_models
from trainers.dry_run.report import NUM_ROWS

ROOT = Path(__file__).resolve().parent.parent
ONLINE = "online --config run.yaml --dataset_name prompts.jsonl --reward_funcs math --max_completion_length 4"
WEIGHTED = "weighted --config run.yaml --dataset_name demonstrations.jsonl"
TRAJECTORIES = "trajectories train --config run.yaml --dataset_name episodes.jsonl"
TASK = (
    f"--config task.yaml --task_type math --math_dataset_name {ROOT}/tests/data/tasks/dapo --sft_model_path tiny "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 1"
)


def write_rows(path, rows):
    Path(path).write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(autouse=True)
def run_dir(folder, tmp_path, monkeypatch):
    """Configuration and data of each command. Of the model there is the configuration; its weights are gone."""
    monkeypatch.setenv("COLUMNS", "120")
    save_tiny_models(tmp_path / "models")
    (tmp_path / "models" / "qwen2_chat").rename(tmp_path / "tiny")
    for model in (tmp_path / "model", tmp_path / "tiny"):
        (model / "model.safetensors").write_bytes(b"no weights")
    rows = [{"prompt": f"{a} + 1 =", "solution": str(a + 1)} for a in range(8)]
    write_rows("prompts.jsonl", rows)
    demonstrations = [
        {"prompt": row["prompt"], "completion": f" Answer: {row['solution']}", "advantages": weight}
        for row, weight in zip(rows, (1.0, -0.5, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0), strict=True)
    ]
    write_rows("demonstrations.jsonl", demonstrations)
    episode = {
        "observations": ["1 + 1 =", "2"],
        "actions": [" Answer: 2"],
        "rewards": [1.0],
        "terminated": True,
        "truncated": False,
    }
    write_rows("episodes.jsonl", [episode] * 8)
    config = {
        "model_name_or_path": "model",
        "output_dir": "out",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "max_steps": 5,
        "per_device_train_batch_size": 4,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k != "model_name_or_path"}))
    return tmp_path


def printed(capsys, words, run=cli.main):
    run([*shlex.split(words), "--dry_run"])
    return " ".join(capsys.readouterr().out.split())


def error_of(capsys, words, run=cli.main):
    """The last line on stderr: log lines and progress bars come before it."""
    with pytest.raises(SystemExit) as stop:
        run(shlex.split(words))
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
@pytest.mark.parametrize(
    ("words", "run"),
    [(ONLINE, cli.main), (WEIGHTED, cli.main), (TRAJECTORIES, cli.main), (TASK, train.main)],
    ids=["online", "weighted", "trajectories", "task"],
)
def test_it_needs_no_weights_and_leaves_no_file(words, run, flag, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    run([*shlex.split(words), flag])
    assert capsys.readouterr().out.endswith("Dry run: nothing was trained, no weights were loaded.\n")
    assert sorted(tmp_path.iterdir()) == before


def test_online_in_numbers(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = printed(capsys, f"{ONLINE} --gradient_accumulation_steps 2 --num_iterations 2 --beta 0.5")
    for expected in (
        "8 prompts",
        "4 per device x 2 accumulation x 2 processes = 16 completions (of 8 prompts x 2 generations)",
        "4 per device x 2 processes x 2 steps_per_generation = 16 completions of 8 prompts, sampled at once, for "
        "2 of these steps (num_iterations=2)",
        "epoch 1 generation batch, 2 steps",
        "steps in all 5 (max_steps); epochs: 2.5",
        "completions in all 48 sampled, 80 trained on",
        "at most 8 a sequence (4 of the longest of the first 8 prompts + 4), 32 a micro-batch, 128 an optimizer step",
        "2 moments x (429,440 x 4 bytes (float32)) + 4 x 26 tensors",
        "reference model 0.0016 exact",
        "buckets of DDP",
        "num_iterations=2: after its first update",
        "importance_sampling_clip_max=3",
        "prompt 1, 4 tokens 1 + 1 =",
        "Reward function math_verification gets prompts, completions, completion_ids, trainer_state, solution; "
        "it names solution.",
        "with the weight r - b - 0.5 log(p/p_ref) of its completion (baseline=optimal)",
        "up to 8 tokens, within the model's context of 128.",
    ):
        assert expected in text


def test_a_task_in_numbers(capsys, monkeypatch):
    """`total_episodes` are of all processes, which nothing waits for."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    text = printed(capsys, f"{TASK} --max_steps -1 --total_episodes 30 --response_length 8", train.main)
    assert "2 per device x 1 accumulation x 3 processes = 6 completions (of 3 prompts x 2 generations)" in text
    assert "steps in all 5 (max_steps)" in text and "completions in all 30 sampled, 30 trained on" in text
    assert "Reward function overlong_penalty gets" in text


def test_weighted_in_numbers(capsys):
    text = printed(capsys, f"{WEIGHTED} --max_steps -1 --num_train_epochs 3 --loss_denominator sequences")
    for expected in (
        "data 8 rows",
        "4 per device x 1 accumulation x 1 process = 4 rows",
        "divided by sequences with a loss token, counted over the whole step, all processes",
        "epoch 2 steps, 2 micro-batches a process",
        "steps in all 6 (num_train_epochs=3); epochs: 3",
        "weighted head: 2 x 28 tokens x 16 x 4 bytes",
        "Bias ledger none",
        "at most 7 a sequence (the longest row), 28 a micro-batch",
        "row 0, 7 tokens 0 + 1 = Answer: 1<|end|> 4 tokens without loss, 3 tokens x 1.0",
        "row 1, 7 tokens 1 + 1 = Answer: 2<|end|> 4 tokens without loss, 3 tokens x -0.5",
        "! Weight 0 on every loss token of 1 row",
    ):
        assert expected in text
    assert "row 3," not in text and "about 8 rows" not in text


def test_packed_rows_are_counted_and_shown(capsys):
    text = printed(capsys, f"{WEIGHTED} --packing true --max_length 16")
    assert "data 8 rows, which make 4 packed rows" in text
    assert "at most 16 a sequence (max_length), 64 a micro-batch" in text
    assert (
        "row 0, 14 tokens 0 + 1 = Answer: 1<|end|>1 + 1 = Answer: 2<|end|> 4 tokens without loss, 3 tokens x 1.0, 4 tok"
        in text
    )


def test_of_a_large_file_the_first_rows_are_looked_at(capsys):
    row = {"prompt": "1 + 1 =", "completion": " Answer: 2", "advantages": 1.0}
    write_rows("large.jsonl", [row] * (2 * NUM_ROWS) + [row | {"advantages": None}])
    text = printed(capsys, "weighted --config run.yaml --dataset_name large.jsonl --packing true --max_length 16")
    assert (
        f"data {2 * NUM_ROWS + 1:,} rows, which make about {round(NUM_ROWS / 2 * (2 + 1 / NUM_ROWS)):,} packed" in text
    )
    assert f"Looked at were the first {NUM_ROWS} rows only: what is wrong with later ones is not seen" in text


def test_normalisation_and_weightings_say_what_they_leave_out(capsys):
    text = printed(capsys, f"{WEIGHTED} --advantage_normalization batch")
    assert "advantage_normalization=batch compared the rows shown only" in text
    rows = [{"prompt": "1 + 1 =", "completion": " Answer: 2", "reward": n % 2} for n in range(NUM_ROWS + 1)]
    write_rows("rewards.jsonl", rows)
    graded = "weighted --config run.yaml --dataset_name rewards.jsonl --weighting reward"
    assert "weighting=reward compared these rows only" in printed(capsys, graded)


def test_trajectories_have_roles(capsys):
    text = printed(capsys, f"{TRAJECTORIES} --mode combined --bc_weight 0.25")
    assert "8 trajectories, which make 8 rows" in text
    assert "tokens x 1.0 (action)" in text and "tokens x 1.0 (observation)" in text
    assert "over actions is multiplied by bc_weight=0.25, that over observations by world_model_weight=0.5" in text


def test_what_comes_while_it_trains_is_not_shown(capsys):
    collected = "trajectories train --config run.yaml --environments online-sft/MathRetries-v0 --collect_every 2"
    text = printed(capsys, f"{collected} --max_completion_length 4")
    assert "3 rounds of 16 episodes, one before every 2 steps: 48 episodes" in text
    assert "They come while it trains." in text
    atropos = "weighted --config run.yaml --data.atropos.api_url http://127.0.0.1:9 --max_length 32"
    text = printed(capsys, atropos)
    assert "batches of Atropos, one for each optimizer step" in text and "steps in all 5" in text


def test_a_stream_has_no_epochs(capsys):
    assert "steps in all 5 (max_steps); epochs: unknown" in printed(capsys, f"{WEIGHTED} --dataset_streaming true")
    text = printed(capsys, f"{ONLINE} --dataset_streaming true --apply_overlong_penalty true")
    assert "a stream of prompts, of unknown length" in text
    assert "completions in all 20 sampled" in text
    assert "Reward function overlong_penalty" in text


def test_evaluation_is_counted(capsys, run_dir):
    (run_dir / "data").mkdir()
    for split, name in (("train", "prompts"), ("test", "prompts")):
        (run_dir / "data" / f"{split}.jsonl").write_text((run_dir / f"{name}.jsonl").read_text())
    words = ONLINE.replace("prompts.jsonl", "data") + " --eval_strategy steps --eval_steps 2 --num_generations_eval 4"
    assert "evaluation every 2 steps: 8 prompts x 4 generations, 8 at a time" in printed(capsys, words)


def test_a_chat_is_shown_through_its_template(capsys):
    write_rows("prompts.jsonl", [{"prompt": [{"role": "user", "content": "1 + 1"}], "solution": "2"}] * 4)
    text = printed(capsys, f"{ONLINE} --model_name_or_path tiny")
    assert "prompt 0, 23 tokens <user>1 + 1<|end|><assistant>" in text


def test_a_context_that_is_too_short_stands_out(capsys):
    text = printed(capsys, ONLINE.replace("--max_completion_length 4", "--max_completion_length 200"))
    assert "up to 204 tokens, ! more than the model's context of 128." in text


def test_tokens_that_a_chat_template_brings_are_counted(capsys):
    text = printed(capsys, f"{WEIGHTED} --chat_template_path tiny")
    assert "parameters 0.0016 exact 435,584 x 4 bytes (float32)" in text


def test_adapters_freeze_the_rest(capsys):
    text = printed(capsys, f"{WEIGHTED} --use_peft true --lora_target_modules q_proj v_proj --dtype bfloat16")
    assert "429,440 x 2 bytes (bfloat16) + 16,384 x 4 bytes (float32)" in text
    assert "gradients 6.1e-05 exact 16,384 x 4 bytes (float32)" in text


def test_reward_models_are_held_too_and_need_no_weights(capsys, run_dir):
    (run_dir / "models" / "gpt_neox_reward" / "model.safetensors").unlink()
    words = ONLINE.replace("--reward_funcs math", "--reward_funcs models/gpt_neox_reward --reward_use_sigmoid true")
    text = printed(capsys, words)
    assert "reward model gpt_neox_reward 9.5e-05 exact 25,440 x 4 bytes (float32)" in text
    assert "Reward function gpt_neox_reward gets" in text


def test_the_engine_takes_its_share_of_a_device_that_is_not_known_here(capsys):
    words = f"{ONLINE} --use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.4"
    text = printed(capsys, words)
    assert "vLLM ? unknown 0.4 x the memory of the device" in text or "vLLM 0.4 x" in text
    assert "key-value cache" not in text and "their sum, and what is unknown" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main([*shlex.split(ONLINE), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert columns - 15 < max(map(len, lines)) <= columns


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        cli.main([*shlex.split(ONLINE), "--dry_run"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == ""


def test_a_configuration_for_gpus_is_described_anywhere(capsys):
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("use_cpu: true", "use_cpu: false"))
    text = printed(capsys, f"{WEIGHTED} --bf16 true --activation_checkpointing true --optim adamw_8bit")
    assert "copies in 16 bits" in text and "28 tokens x 2 bytes x (2 layers x 128 + 2,816 of one layer)" in text
    assert "optimizer 0.00083 about adamw_8bit" in text


@pytest.fixture
def with_weights(model, run_dir):
    model.save_pretrained(run_dir / "model")


# The message is that of the run that trains.
@pytest.mark.usefixtures("with_weights")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ONLINE.replace("prompts.jsonl", "demonstrations.jsonl"), "the math reward needs one column of golds"),
        (f"{ONLINE} --per_device_train_batch_size 64", "the train dataset has 8 rows and one batch takes 32 prompts"),
        (f"{ONLINE} --reward_weights 1 2", "Number of reward weights (2) must match"),
        (f"{ONLINE} --correct_reward 2 --reward_funcs reasoning_gym", "are for the reward function named 'math'"),
        (f"{ONLINE} --model_name_or_path nowhere/at_all", "couldn't find them in the cached files"),
        (f"{ONLINE} --dataset_streaming true --max_steps -1", "max_steps has to be specified"),
        (f"{ONLINE} --dataset_streaming true --filter_groups_enable true", "which a stream does not have"),
        (f"{ONLINE} --num_generations 3", "must be divisible by num_generations (3)"),
        (f"{ONLINE} --use_peft true --lora_target_modules no_proj", "no_proj"),
        (f"{ONLINE} --reward_use_sigmoid true", "reward_use_sigmoid and reward_max_length are for reward models"),
        (WEIGHTED.replace("demonstrations", "prompts"), "needs an `advantages` column"),
        (f"{WEIGHTED} --weighting reward", "a weighting makes weights from a `reward` column"),
        (f"{WEIGHTED} --policy_weighting importance", "needs a `ref_log_probs` column"),
        (f"{WEIGHTED} --padding_free true", "`max_length` is not enforced"),
        (f"{WEIGHTED} --eos_token no_token", "('no_token') is not found in the vocabulary"),
        (WEIGHTED.replace("demonstrations", "no_file"), "no_file.jsonl"),
        (
            f"{TRAJECTORIES} --filter_low_reward true --min_reward_threshold 2 --mode behavioral_cloning",
            "nothing is to",
        ),
        (TRAJECTORIES.replace("episodes", "prompts"), "prompts.jsonl"),
        (f"{TRAJECTORIES} --bc_weigth 1", "unknown argument 'bc_weigth'; did you mean 'bc_weight'?"),
    ],
)
def test_what_the_run_refuses_is_refused_alike(words, message, capsys):
    said = error_of(capsys, f"{words} --dry_run")
    assert message in said
    assert said == error_of(capsys, words)


def test_the_task_refuses_too(capsys):
    said = error_of(capsys, f"{TASK} --reward_model_path models/gpt_neox_reward --dry_run", train.main)
    assert "task_type=math compares answers and has no reward model" in said


def test_chats_without_a_template_are_refused_before_the_run_begins(capsys):
    write_rows("prompts.jsonl", [{"prompt": [{"role": "user", "content": "1 + 1"}], "solution": "2"}] * 4)
    assert "the tokenizer has no chat_template" in error_of(capsys, f"{ONLINE} --dry_run")


@pytest.mark.parametrize("command", ["replay", "inspect", "verify"])
def test_commands_that_do_not_train_have_no_dry_run(command, capsys):
    assert "unknown argument 'dry_run'" in error_of(capsys, f"{command} --dry_run")


@pytest.mark.parametrize("command", [["online"], ["weighted"], ["trajectories", "train"]])
def test_help_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    assert "--dry_run, --dry-run Do not train, nor load the model" in " ".join(capsys.readouterr().out.split())
