"""The house rules that a program can check."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
import trl
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

import online_sft
from online_sft.baselines import BASELINES
from online_sft.denominators import DENOMINATORS
from online_sft.estimators import ESTIMATORS
from online_sft.group_rewards import REWARD_SCALES
from online_sft.importance import IMPORTANCE_SAMPLING_MODES
from online_sft.normalisation import NORMALISATIONS
from online_sft.weightings import WEIGHTINGS
from trainers.checkpoints.resumable import ResumableTrainer
from trainers.online_sft_trainer import OnlineSFTTrainer
from trainers.options import OnlineSFTOptions, WeightedSFTOptions
from trainers.recording.recorded import RecordedTrainer
from trainers.weighted_collator import WeightedDataCollator
from trainers.weighted_sft_trainer import WeightedSFTTrainer

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("online_sft", "trainers", "recipes") for path in (ROOT / folder).rglob("*.py"))
MODULES = sorted(
    module.name
    for package in ("online_sft", "trainers")
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    if not module.name.endswith("__main__")
)


def imported_packages(path):
    tree = ast.parse(path.read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names if name}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_files_hold_one_idea(path):
    """recipes → trainers → online_sft → torch; what starts programs and the lazy __init__ are composition roots."""
    folder = path.relative_to(ROOT).parts[0]
    forbidden = {
        "online_sft": {"trl", "transformers", "trainers", "recipes"},
        "trainers": {"recipes"},
        "recipes": set(),
    }
    roots = ("cli.py", "train.py", "launching.py", "__init__.py")
    if path not in [ROOT / "online_sft" / name for name in roots]:
        assert not imported_packages(path) & forbidden[folder]
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_listed_sorted_and_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    public = getattr(module, "__all__", [])
    assert public == sorted(public, key=lambda n: (not n.isupper(), n[0].islower(), n))
    for attribute in public:
        value = getattr(module, attribute)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{attribute}"


def test_the_lazy_names_exist_and_importing_the_package_loads_neither_torch_nor_transformers():
    assert sorted(online_sft._HOME_OF) == sorted(online_sft.__all__)
    for name in online_sft.__all__:
        assert getattr(online_sft, name) is getattr(importlib.import_module(online_sft._HOME_OF[name]), name)
    check = "import online_sft, sys; assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


UPSTREAM = {
    (trl.SFTTrainer, "_prepare_dataset"): "dataset processing_class args packing formatting_func dataset_name",
    (trl.SFTTrainer, "_set_signature_columns_if_needed"): "",
    (trl.SFTTrainer, "compute_loss"): "model inputs return_outputs num_items_in_batch",
    (trl.SFTTrainer, "get_train_dataloader"): "",
    (trl.SFTTrainer, "get_batch_samples"): "epoch_iterator num_batches device",
    (trl.SFTTrainer, "log"): "logs start_time",
    (trl.GRPOTrainer, "_generate"): "prompts",
    (trl.GRPOTrainer, "_calculate_rewards"): "inputs prompts completions completion_ids_list",
    (trl.GRPOTrainer, "_generate_and_score_completions"): "inputs",
    (trl.GRPOTrainer, "_compute_loss"): "model inputs",
    (trl.GRPOTrainer, "log"): "logs start_time",
    (
        transformers.Trainer,
        "create_model_card",
    ): "language license tags model_name finetuned_from tasks dataset_tags dataset dataset_args",
    (transformers.Trainer, "train"): "resume_from_checkpoint trial ignore_keys_for_eval",
    (transformers.Trainer, "evaluate"): "eval_dataset ignore_keys metric_key_prefix",
    (transformers.Trainer, "get_batch_samples"): "epoch_iterator num_batches device",
    (transformers.Trainer, "log"): "logs start_time",
    (transformers.Trainer, "_load_callback_state"): "",
    (transformers.Trainer, "save_model"): "output_dir _internal_call",
    (transformers.Trainer, "_save_checkpoint"): "model trial",
    (transformers.Trainer, "_get_output_dir"): "trial",
    (transformers.Trainer, "_push_from_checkpoint"): "checkpoint_folder",
    (transformers.Trainer, "_load_optimizer_and_scheduler"): "checkpoint",
    (transformers.Trainer, "get_train_dataloader"): "",
    (transformers.Trainer, "_get_train_sampler"): "train_dataset",
    (
        transformers.Trainer,
        "_run_epoch",
    ): "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
    "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
    (trl.trainer.sft_trainer.DataCollatorForLanguageModeling, "torch_call"): "examples",
}


@pytest.mark.parametrize(("method", "parameters"), UPSTREAM.items(), ids=lambda value: str(value))
def test_the_methods_that_we_override_still_have_the_signature_that_we_know(method, parameters):
    owner, name = method
    assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *parameters.split()]


# What stands between the trainer and vLLM replaces these of an object's methods, and calls them.
WRAPPED = {
    (VLLMGeneration, "sync_weights"): "",
    (VLLMGeneration, "_iter_named_params"): "",
    (VLLMGeneration, "generate"): "prompts images num_generations profiler",
    (VLLMClient, "generate"): "prompts features n repetition_penalty temperature top_p top_k min_p max_tokens logprobs "
    "structured_outputs_regex generation_kwargs",
    (VLLMClient, "update_named_params"): "metadata named_params",
    (VLLMClient, "reset_prefix_cache"): "",
    (VLLMClient, "init_communicator"): "device",
    (VLLMClient, "close_communicator"): "",
    (VLLMClient, "get_server_info"): "",
    (VLLMClient, "get_sequence_logprobs"): "sequences prompt_lengths top_logprobs temperature chunk_size "
    "max_concurrent_requests",
    (trl.GRPOTrainer, "_tokenize_prompts"): "prompts",
    (trl.GRPOTrainer, "_generate_single_turn"): "prompt_ids images multimodal_fields num_generations has_tool_images",
}


@pytest.mark.parametrize(("method", "parameters"), WRAPPED.items(), ids=lambda value: str(value))
def test_the_methods_between_trainer_and_vllm_still_have_the_signature_that_we_know(method, parameters):
    owner, name = method
    assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *parameters.split()]


def test_every_override_is_listed_here_and_in_the_class_docstring():
    overridden = set()
    for ours in (WeightedSFTTrainer, OnlineSFTTrainer, RecordedTrainer, ResumableTrainer, WeightedDataCollator):
        upstream = next(each for each in ours.__mro__ if each.__module__.startswith(("trl.", "transformers.")))
        methods = {n for n, value in vars(ours).items() if inspect.isfunction(value) and hasattr(upstream, n)}
        methods -= {"__init__", "__eq__", "__repr__"}
        overridden |= {(upstream, name) for name in methods}
        if ours is not WeightedDataCollator:
            assert all(f"{name}:" in ours.__doc__ for name in methods)
    assert overridden == set(UPSTREAM)


def test_grpo_still_refuses_groups_of_one_so_our_detour_is_still_needed(cpu_args):
    with pytest.raises(ValueError, match="at least 2 generations"):
        trl.GRPOConfig(**cpu_args, num_generations=1)


def test_the_choices_offered_by_the_options_are_the_functions_that_exist():
    offered = {field.name: field.metadata.get("choices") for field in fields(OnlineSFTOptions)}
    assert sorted(offered["estimator"]) == sorted(ESTIMATORS)
    assert sorted(offered["baseline"]) == sorted(BASELINES)
    assert sorted(offered["scale_rewards"]) == sorted(REWARD_SCALES)
    assert sorted(offered["importance_sampling_mode"]) == sorted(IMPORTANCE_SAMPLING_MODES)
    offered = {field.name: field.metadata.get("choices") for field in fields(WeightedSFTOptions)}
    assert sorted(offered["advantage_normalization"]) == sorted(NORMALISATIONS)
    assert sorted(offered["loss_denominator"]) == sorted([*DENOMINATORS, "constant"])
    help_of_weighting = next(f.metadata["help"] for f in fields(WeightedSFTOptions) if f.name == "weighting")
    assert set(WEIGHTINGS) <= set(re.findall(r"`(\w+)`", help_of_weighting))


def test_a_foreign_trainers_folder_is_named_and_the_console_script_does_not_see_it(tmp_path):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").write_text("")
    shadowed = subprocess.run(
        [sys.executable, "-c", "from online_sft import OnlineSFTConfig"], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"Python found another one in {tmp_path / 'trainers'}" in shadowed.stderr
    script = Path(sys.executable).parent / "online-sft"
    immune = subprocess.run([script, "env"], cwd=tmp_path, capture_output=True, text=True)
    assert immune.returncode == 0, immune.stderr
    assert f"{ROOT / 'trainers'}" in immune.stdout


@pytest.mark.slow
def test_the_wheel_holds_our_two_packages_and_works_elsewhere_beside_a_decoy(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("online_sft-*.whl")
    packages = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"online_sft", "trainers"}

    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True)
    ours = tmp_path / "venv" / "bin"
    subprocess.run([ours / "pip", "install", "--no-deps", "--force-reinstall", "-q", wheel], check=True)
    packages_of_this_venv = next(path for path in sys.path if path.endswith("site-packages"))
    (next((tmp_path / "venv").rglob("site-packages")) / "tested.pth").write_text(packages_of_this_venv)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "trainers").mkdir(parents=True)
    (elsewhere / "trainers" / "__init__.py").write_text("raise RuntimeError('decoy')")
    done = subprocess.run([ours / "online-sft", "env"], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "venv") in done.stdout.splitlines()[0]


def test_no_local_link_of_the_documents_is_dead():
    for document in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("recipes/**/*.md"),
    ]:
        for target, _, anchor in re.findall(r"\]\((?!http)([^)#]*)(#([^)]*))?\)", document.read_text()):
            linked = document.parent / target if target else document
            assert linked.exists(), f"{document.name}: {target}"
            if anchor and linked.suffix == ".md":  # that of a picture says whether it is for light or dark
                headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, target


def test_the_constraints_are_exact_versions_and_nothing_else():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[\w.-]+==[\w.]+( ; python_version >= \"3\.11\")?", line), line
