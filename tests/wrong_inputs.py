"""The mistakes of newcomers: what they type, the files they have, and what the message has to say.

`docs/errors.md` is this list: `python tests/wrong_inputs.py` in the repository's root writes it.
"""

import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Args:
        words: what is wrong.
        command: what follows `online-sft`, less the options of every run (`COMMON`).
        thing, value, way_out: parts of the message.
        files: that lie in the working directory, beside `demonstrations.jsonl`, `prompts.jsonl` and `model`.
        change: what has happened to a copy of the model's folder.
    """

    words: str
    command: str
    thing: str
    value: str
    way_out: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    change: Callable[[Path], object] | None = None


COMMON = [
    "--model_name_or_path",
    "model",
    "--output_dir",
    "out",
    "--use_cpu",
    "true",
    "--bf16",
    "false",
    "--activation_checkpointing",
    "false",
    "--report_to",
    "none",
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "2",
    "--disable_tqdm",
    "true",
]
PROMPTS = [{"prompt": f"{a} + 1 =", "solution": str(a + 1)} for a in range(8)]
DEMONSTRATIONS = [
    {"prompt": f"{a} + 1 =", "completion": f" Answer: {a + 1}", "advantages": 1.0} for a in range(8)
]  # fmt: skip
TOKENS = [{"input_ids": [2, 3, 4], "labels": [-100, 3, 4], "advantages": 1.0}] * 4
USER, ASSISTANT = {"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}
REWARDS = """
def scalar(completions, **columns):
    return 1.0

def too_few(completions, **columns):
    return [1.0]

def words(completions, **columns):
    return ["good" for _ in completions]

def not_a_number(completions, **columns):
    return [float("nan") for _ in completions]

def pairs(completions, **columns):
    import torch
    return torch.ones(len(completions), 2)

def nothing(completions, **columns):
    pass

def one_by_one(completion):
    return 1.0

def by_answer(completions, answer, **columns):
    return [1.0 for _ in completions]

class Short:
    def __call__(self, completions, **columns):
        return [1.0 for _ in completions]
"""
ENVIRONMENTS = """
import gymnasium
from gymnasium import spaces

class OldGym(gymnasium.Env):
    observation_space = action_space = spaces.Text(9)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "1 + 1 =", {}

    def step(self, action):
        return "", 1.0, True, {}

gymnasium.register("OldGym-v0", entry_point=OldGym)
"""


def lines(rows: list[dict[str, object]]) -> str:
    """JSONL."""
    return "\n".join(map(json.dumps, rows))


def rows(like: list[dict[str, object]], **changed: object) -> dict[str, str]:
    """A file `data.jsonl` of rows `like` those, with other values; a value of `...` removes the column."""
    merged = [{**row, **changed} for row in like]
    return {"data.jsonl": lines([{k: v for k, v in row.items() if v is not ...} for row in merged])}


def config(text: str) -> dict[str, str]:
    return {"run.yaml": text}


def weighted(options: str = "", data: str = "data.jsonl") -> str:
    return f"weighted --dataset_name {data} {options}".strip()


def online(options: str = "", data: str = "prompts.jsonl", reward: str = "math") -> str:
    return f"online --dataset_name {data} --reward_funcs {reward} --max_completion_length 4 {options}".strip()


def collect(options: str) -> str:
    return f"trajectories collect --output out.jsonl --max_completion_length 4 --episodes 2 {options}"


def replace_config(**values: object) -> Callable[[Path], object]:
    return lambda model: (model / "config.json").write_text(json.dumps(values))


def remove(*names: str) -> Callable[[Path], object]:
    return lambda model: [(model / name).unlink() for name in names]


def as_adapter(model: Path) -> None:
    remove("config.json", "model.safetensors")(model)
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def broken(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


YAML = weighted("--config run.yaml", "demonstrations.jsonl")
GOOD = "demonstrations.jsonl"
SECTIONS = {
    "Configuration": [
        Mistake("YAML with a tab", YAML, "run.yaml is no YAML", "\\t", "indented with spaces", config("a:\n\tb: 1")),
        Mistake("YAML in UTF-16", YAML, "run.yaml is no YAML", "0xff", "UTF-8", {"run.yaml": "a: 1".encode("utf-16")}),
        Mistake("an empty YAML file", YAML, "run.yaml sets no fields", "None", "`name: value`", config("")),
        Mistake("a YAML file that is a list", YAML, "run.yaml sets no", "['a']", "`name: value`", config("- a")),
        Mistake("no YAML file of that name", YAML, "No such file", "'run.yaml'", "check the path"),
        Mistake(
            "a typo in a key", YAML, "unknown argument", "'lerning_rate'", "'learning_rate'", config("lerning_rate: 1")
        ),
        Mistake(
            "a section in YAML", YAML, "no sections", "'training'", "write learning_rate at", config("training: {learning_rate: 1}")
        ),
        Mistake(
            "a word for a number in YAML", YAML, "--learning_rate", "'high'", "write a number", config("learning_rate: high")
        ),
        Mistake(
            "nothing for a number in YAML", YAML, "learning_rate", "None", "must be a number", config("learning_rate:")
        ),
        Mistake(
            "a list for a number in YAML", YAML, "seed", "[1, 2]", "must be a whole number", config("seed: [1, 2]")
        ),
        Mistake("no without quotes in YAML", YAML, "Strategy", "False", "write 'no'", config("eval_strategy: no")),
        Mistake("a word too many", weighted("extra", GOOD), "not used", "['extra']", "--NAME VALUE"),
        Mistake("an option without its value", weighted("--learning_rate", GOOD), "--learning_rate", "expected one argument", "write its value"),
        Mistake("batches of 0 rows", weighted("--per_device_train_batch_size 0", GOOD), "per_device_train_batch_size", "got 0", "at least 1"),
        Mistake("accumulation of 0 batches", online("--gradient_accumulation_steps 0"), "gradient_accumulation_steps", "got 0", "at least 1"),
        Mistake("a negative learning rate", weighted("--learning_rate -1", GOOD), "learning_rate", "got -1.0", "1e-5 for example"),
        Mistake("0 steps", weighted("--max_steps 0", GOOD), "max_steps", "=0", "1 or more"),
        Mistake("rows of 1 token", weighted("--max_length 1", GOOD), "max_length", "=1", "raise it"),
        Mistake("JSON without quotes", weighted("--weighting exponential --weighting_kwargs {temperature:1}", GOOD), "weighting_kwargs", "{temperature:1}", "must be JSON"),
        Mistake("completions of 0 tokens", online("--max_completion_length 0"), "max_completion_length", "got 0", "at least 1"),
        Mistake("0 samples a prompt", online("--num_generations 0"), "num_generations", "got 0", "at least 1"),
        Mistake("groups that do not fill a batch", online("--num_generations 3"), "generation_batch_size (2)", "num_generations (3)", "make per_device_train_batch_size"),
        Mistake("temperature 0", online("--temperature 0"), "temperature", "got 0.0", "greater than 0"),
        Mistake("top_p above 1", online("--top_p 2"), "top_p", "got 2.0", "at most 1"),
        Mistake("a negative top_k", online("--top_k -3"), "top_k", "got -3", "0 or -1"),
        Mistake("a negative beta", online("--beta -0.1"), "beta", "got -0.1", "0 or more"),
        Mistake("bf16 without a GPU", online("--use_cpu false --bf16 true"), "bf16/gpu", "doesn't support", "--use_cpu true --bf16 false"),
        Mistake("liger-kernel is not installed", online("--use_liger_kernel"), "use_liger_kernel", "=True", "pip install liger-kernel"),
        Mistake("vLLM is not installed", online("--use_vllm"), "use_vllm", "=True", "pip install 'online-sft[vllm]'"),
        Mistake("a tracker that is not installed", weighted("--report_to mlflow", GOOD), "report_to", "'mlflow'", "pip install mlflow"),
        Mistake("an optimizer that is not installed", weighted("--optim adamw_bnb_8bit", GOOD), "optimizers", "`bitsandbytes`", "pip install"),
        Mistake("adapters on modules that are not there", weighted("--use_peft --lora_target_modules nope", GOOD), "Target modules", "nope", "all-linear"),
        Mistake("output_dir is a file", weighted("--output_dir prompts.jsonl", GOOD), "File exists", "'prompts.jsonl'", "choose another output_dir"),
        Mistake("evaluation without a test split", online("--eval_strategy steps"), "split 'test'", "'prompts.jsonl'", "a folder with a file per split"),
        Mistake("a checkpoint that is not there", weighted("--resume_from_checkpoint out/checkpoint-9", GOOD), "no whole checkpoint", "out/checkpoint-9", "drop resume_from_checkpoint"),
    ],
    "Files": [
        Mistake("no file of that name", weighted(data="no.jsonl"), "split 'train'", "'no.jsonl'", "check the path"),
        Mistake("a folder that is not there", weighted(data="no-data"), "split 'train'", "'no-data'", "check the path"),
        Mistake("an empty file", weighted(), "'data.jsonl'", "no rows", "one JSON object per line", {"data.jsonl": ""}),
        Mistake("a file that is not JSON", weighted(), "'data.jsonl'", "row 0", "one JSON object per line", {"data.jsonl": "2 + 2 = 4"}),
        Mistake("JSON of a number", weighted(data="data.json"), "'data.json'", "number in row 0", "one JSON object per line", {"data.json": "3"}),
        Mistake("a JSON list on each line", weighted(), "'data.jsonl'", "position 5", "one JSON object per line", {"data.jsonl": "[1,2]\n[3,4]"}),
        Mistake("JSONL in UTF-16", weighted(), "'data.jsonl'", "row 0", "in UTF-8", {"data.jsonl": lines(PROMPTS).encode("utf-16")}),
        Mistake("CSV without a header", weighted(data="data.csv"), "`advantages`", "it has 2 + 2 =, 4, 1.0", "needs an", {"data.csv": "2 + 2 =,4,1.0\n3 + 3 =,6,1.0"}),
        Mistake("an empty CSV file", weighted(data="data.csv"), "'data.csv'", "No columns", "a line of column names", {"data.csv": ""}),
        Mistake("a text file", weighted(data="data.txt"), "'data.txt'", "no known kind", ".jsonl", {"data.txt": "2 + 2 = 4"}),
    ],
    "Rows": [
        Mistake("no advantages", weighted(), "`advantages`", "it has prompt, completion", "1.0 for plain SFT", rows(DEMONSTRATIONS, advantages=...)),
        Mistake("advantages that are words", weighted(), "row 0", "'high'", "one number", rows(DEMONSTRATIONS, advantages="high")),
        Mistake("NaN among the advantages", weighted(), "row 0", "nan", "finite number", rows(DEMONSTRATIONS, advantages=float("nan"))),
        Mistake("too few advantages", weighted(), "row 0", "1 advantages for 3 tokens", "one number per token", rows(TOKENS, advantages=[1.0])),
        Mistake("advantages in lists of lists", weighted(), "row 0", "2 advantages", "one number per token", rows(DEMONSTRATIONS, advantages=[[1.0], [2.0]])),
        Mistake("no column to train on", weighted(), "train dataset", "it has question, advantages", "`prompt` and `completion`", rows([{"question": "?", "advantages": 1.0}])),
        Mistake("a prompt that is a number", weighted(), "row 0", "prompt 3", "must be a text", rows(DEMONSTRATIONS, prompt=3)),
        Mistake("a completion that is missing", weighted(), "row 0", "completion None", "must be a text", {"data.jsonl": lines([{**DEMONSTRATIONS[0], "completion": None}, *DEMONSTRATIONS])}),
        Mistake("a label too few", weighted(), "row 0", "2 labels for 3 tokens", "-100", rows(TOKENS, labels=[3, 4])),
        Mistake("labels that are words", weighted(), "row 0", "['a', 'b', 'c']", "whole numbers", rows(TOKENS, labels=["a", "b", "c"])),
        Mistake("a loss mask with a 2", weighted(), "`loss_mask`", "has 2", "1 on loss tokens", rows(TOKENS, labels=..., loss_mask=[0, 2, 1])),
        Mistake("a loss mask that is one number", weighted(), "loss_mask", "loss_mask 1", "give a list", rows(TOKENS, labels=..., loss_mask=1)),
        Mistake("a token that the model has not", weighted(), "input_ids", "99999", "tokenizer of the model", rows(TOKENS, input_ids=[2, 3, 99999])),
        Mistake("a label that the model has not", weighted(), "labels", "99999", "tokenizer of the model", rows(TOKENS, labels=[2, 3, 99999])),
        Mistake("tokens with a decimal point", weighted(), "input_ids", "[2.5, 3.0, 4.0]", "whole numbers", rows(TOKENS, input_ids=[2.5, 3, 4])),
        Mistake("messages without a role", weighted(), "message 0", "{'content': 'hi'}", "`role`", rows([{"messages": [{"content": "hi"}], "advantages": 1.0}])),
        Mistake("no messages", weighted(), "row 0", "messages []", "`role` and `content`", rows([{"messages": [], "advantages": 1.0}])),
        Mistake("messages that are a text", weighted(), "row 0", "'hello'", "`role` and `content`", rows([{"messages": "hello", "advantages": 1.0}])),
        Mistake("a weight that is a word", weighted(), "row 0", "'high'", "finite number", rows([{"messages": [USER, {**ASSISTANT, "weight": "high"}]}])),
        Mistake("messages without a chat template", weighted(), "chat_template", "not set", "give texts instead", rows([{"messages": [USER, ASSISTANT], "advantages": 1.0}])),
        Mistake("no prompts", online(data="data.jsonl"), "`prompt`", "it has solution", "needs", rows(PROMPTS, prompt=...)),
        Mistake("a prompt without a value", online(data="data.jsonl"), "row 0", "prompt None", "must be a text", {"data.jsonl": lines([{**PROMPTS[0], "prompt": None}, *PROMPTS])}),
        Mistake("an empty prompt", online(data="data.jsonl"), "row 0", "prompt ''", "remove it", rows(PROMPTS, prompt="")),
        Mistake("a prompt that is a list of texts", online(data="data.jsonl"), "row 0", "'2 + 2 ='", "`role`", rows(PROMPTS, prompt=["2 + 2 ="])),
        Mistake("prompts of messages without a chat template", online(data="data.jsonl"), "prompts", "chat_template", "give texts", rows(PROMPTS, prompt=[USER])),
        Mistake("math without solutions", online(data="data.jsonl"), "math reward", "solution", "set gold_column", rows(PROMPTS, solution=...)),
        Mistake("reasoning-gym without its metadata", online(reward="reasoning_gym"), "'reasoning_gym'", "prompt, solution", "needs the column answer, metadata"),
        Mistake("metadata that is no JSON", online(data="data.jsonl", reward="reasoning_gym"), "row 0", "'nope'", "json.dumps", rows(PROMPTS, answer="1", metadata="nope")),
    ],
    "Models": [
        Mistake("no model of that name", online("--model_name_or_path ./no-model"), "the model", "'./no-model'", "check the path"),
        Mistake("a hub id that cannot be reached", weighted("--model_name_or_path no/model", GOOD), "the model", "'no/model'", "check the name"),
        Mistake("a model without config.json", online(), "the model 'model'", "no config.json", "save_pretrained", change=remove("config.json")),
        Mistake("a config.json that is not JSON", online(), "the model 'model'", "not a valid JSON", "correct its config.json", change=lambda model: (model / "config.json").write_text("{")),
        Mistake("a model without a tokenizer", online(), "the folder 'model'", "no tokenizer", "tokenizer.save_pretrained", change=remove("tokenizer.json", "tokenizer_config.json")),
        Mistake("a model without weights", weighted("", GOOD), "model.safetensors", "directory model", "save_pretrained", change=remove("model.safetensors")),
        Mistake("a model that was not copied whole", weighted("", GOOD), "model.safetensors", "not fully covered", "copy or download it again", change=broken),
        Mistake("an encoder", weighted("", GOOD), "the model 'model'", "BertModel", "ForCausalLM", change=replace_config(model_type="bert", architectures=["BertModel"])),
        Mistake("an adapter", online(), "the model 'model'", "is an adapter", "merge_and_unload", change=as_adapter),
        Mistake("a file instead of a model's folder", online("--model_name_or_path prompts.jsonl"), "the model", "'prompts.jsonl'", "give the folder"),
    ],
    "Rewards": [
        Mistake("a module that is not there", online(reward="no.such"), "'no.such'", "No module named 'no'", "MODULE.FUNCTION"),
        Mistake("a function that is not there", online(reward="rewards.such"), "'rewards.such'", "no attribute 'such'", "MODULE.FUNCTION"),
        Mistake("a module with a syntax error", online(reward="typo.reward"), "'typo.reward'", "line 1", "cannot be imported", {"typo.py": "def reward(:\n"}),
        Mistake("a file instead of a function", online(reward="rewards.py"), "'rewards.py'", "is a file", "rewards.my_reward"),
        Mistake("a class instead of a function", online(reward="rewards.Short"), "rewards.Short", "no reward function", "completions, **columns"),
        Mistake("a typo in a reward's name", online(reward="mth"), "reward function or model", "'mth'", "check the name"),
        Mistake("a reward model that is not there", online(reward="./no-model"), "reward function or model", "'./no-model'", "check the path"),
        Mistake("a language model as reward model", online(reward="./model"), "'./model'", "score.weight", "not a trained reward model"),
        Mistake("a function of one completion", online(reward="rewards.one_by_one"), "'one_by_one'", "(completion)", "write (completions, **columns)"),
        Mistake("a function of a column that is not there", online(reward="rewards.by_answer"), "'by_answer'", "answer", "the dataset has prompt, solution"),
        Mistake("one number for all completions", online(reward="rewards.scalar"), "'scalar'", "returned 1.0", "must return a list"),
        Mistake("nothing returned", online(reward="rewards.nothing"), "'nothing'", "returned None", "must return a list"),
        Mistake("too few rewards", online(reward="rewards.too_few"), "'too_few'", "1 rewards for 2 completions", "exactly one per completion"),
        Mistake("rewards that are words", online(reward="rewards.words"), "'words'", "'good' for completion 0", "return a finite number"),
        Mistake("rewards that are NaN", online(reward="rewards.not_a_number"), "'not_a_number'", "nan for completion 0", "return a finite number"),
        Mistake("two rewards for each completion", online(reward="rewards.pairs"), "'pairs'", "tensor([1., 1.])", "return a finite number"),
        Mistake("weights for more rewards than there are", online("--reward_weights 1 2"), "reward weights", "(2)", "one of --reward_weights for each"),
    ],
    "Trajectories and Atropos": [
        Mistake("no environment", collect(""), "no environment", "--environments", "for example"),
        Mistake("an environment that is not known", collect("--environments Nope-v0"), "no environment", "'Nope-v0'", "module:Id-v0"),
        Mistake("an environment of the old Gym", collect("--environments environments:OldGym-v0"), "step must return", "('', 1.0, True, {})", "terminated, truncated"),
        Mistake("no episodes", collect("--environments environments:OldGym-v0 --episodes 0"), "episodes", "got 0", "at least 1"),
        Mistake("a folder that is not there for the output", collect("--environments x --output no/out.jsonl"), "--output", "'no'", "make it first"),
        Mistake("demonstrations instead of trajectories", f"trajectories train --dataset_name {GOOD}", "line 1", "observations", "a trajectory has the lists"),
        Mistake("an address of Atropos without http", "weighted --atropos_api_url localhost:8000", "atropos_api_url", "'localhost:8000'", "must begin with http://"),
        Mistake("no journal to replay", "replay no-journal --output_dir other", "the journal", "no-journal", "no batch"),
    ],
    "Looking": [
        Mistake("inspect: no model for its tokenizer", "inspect demonstrations.jsonl", "text rows", "tokenizer", "set --model_name_or_path"),
        Mistake("score: no column of that name", "score prompts.jsonl --gold answer --completion prompt", "no column", "'answer'", "it has prompt, solution"),
        Mistake("report: a folder of no run", "report model", "model", "no record", "the output_dir of a run"),
        Mistake("verify: a folder that is not there", "verify --json no/table.json", "No such file", "'no/table.json'", "check the path"),
    ],
}  # fmt: skip
MISTAKES = [mistake for mistakes in SECTIONS.values() for mistake in mistakes]


def outcome(mistake: Mistake, model: Path, folder: Path) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr of the command, run in the empty `folder`, which they name as `.`."""
    from online_sft.cli import main

    given = {"prompts.jsonl": lines(PROMPTS), "demonstrations.jsonl": lines(DEMONSTRATIONS)}
    given |= {"rewards.py": REWARDS, "environments.py": ENVIRONMENTS, **mistake.files}
    for name, content in given.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if mistake.change is None:
        (folder / "model").symlink_to(model)
    else:
        shutil.copytree(model, folder / "model")
        mistake.change(folder / "model")
    of_us = {name for name in sys.modules if name in ("rewards", "environments", "typo")}
    for name in of_us:  # of another folder
        del sys.modules[name]
    before, code, printed = os.getcwd(), 0, io.StringIO()
    os.chdir(folder)
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            main(arguments_of(mistake))
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os.chdir(before)
    shown = printed.getvalue().replace(str(folder.resolve()), ".").replace("\r", "\n")
    return code, [line for line in shown.splitlines() if line.strip()]


def arguments_of(mistake: Mistake) -> list[str]:
    """With the options of every run, where it is one."""
    words = shlex.split(mistake.command) if "{" not in mistake.command else mistake.command.split()
    if words[0] in ("weighted", "online", "trajectories", "replay"):
        num_names = {"trajectories": 2, "replay": 2}.get(words[0], 1)
        return [*words[:num_names], *COMMON, *words[num_names:]]
    return words


def page(messages: Mapping[str, str]) -> str:
    """The table, from the message of each mistake."""
    text = (
        "# Mistakes and their messages\n\n"
        "What the commands say to common mistakes: one line on stderr, exit code 2. In Python the same is raised, as "
        "`ValueError` or `ImportError`. A reward function that raises keeps its traceback, which ends with the "
        "function, the step, and what is saved.\n\n"
        "`tests/test_wrong_inputs.py` makes every mistake and compares; `python tests/wrong_inputs.py` writes this "
        "page.\n"
    )
    for section, mistakes in SECTIONS.items():
        text += f"\n## {section}\n\n| mistake | message |\n|---|---|\n"
        for mistake in mistakes:
            text += f"| {mistake.words} | {cell_of(messages[mistake.words])} |\n"
    return text


def cell_of(message: str) -> str:
    """As code, in a table."""
    shown = message.replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def write_page() -> None:
    """Makes every mistake."""
    from recipes.quickstart.tiny_model import build_model, build_tokenizer

    messages = {}
    with tempfile.TemporaryDirectory() as parent:
        model, tokenizer = Path(parent, "model"), build_tokenizer([" + ", " =", " Answer: "])
        build_model(tokenizer, seed=0).save_pretrained(model)
        tokenizer.save_pretrained(model)
        for number, mistake in enumerate(MISTAKES):
            folder = Path(parent, str(number))
            folder.mkdir()
            messages[mistake.words] = outcome(mistake, model, folder)[1][-1]
    PAGE.write_text(page(messages), encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(ROOT))
    write_page()
