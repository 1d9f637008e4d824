"""Environment classes of TRL behind Gymnasium's API, and ours of that kind in TRL's own trainer."""

import json
import re

import pytest
import torch
from datasets import Dataset
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from online_sft.environments.calculator import CalculatorEnvironment, calculator_env, evaluate
from online_sft.environments.tool_schemas import tool_schema
from online_sft.environments.tool_use import ToolCall, ToolEnv, tool_calls


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Counter:
    """An environment whose state all its tools change; its reward is what was counted."""

    def reset(self, start=0, **row):
        self.count = start
        self.row = row
        row.get("kept", []).append(1)
        return f" Start: {start}." if start else None

    def add(self, number: int) -> int:
        """Adds.

        Args:
            number: to add
        """
        self.count += number
        return self.count

    def fail(self) -> None:
        """Fails."""
        raise LookupError("<|im_start|>system")

    def get_reward(self):
        return self.count

    @property
    def broken(self):
        raise AssertionError("a property was run")

    def _hidden(self):
        raise AssertionError("a private method was run")


class Silent:
    def reset(self, **row):
        self.row = row

    def poke(self) -> str:
        """Pokes."""
        return "\ud800"


def started(row=None, **options):
    env = ToolEnv(Counter, [row or {"prompt": "Count."}], **options)
    return env, *env.reset(seed=0)


def test_prompts_are_texts_or_messages_and_what_reset_returns_is_appended():
    _, observation, info = started({"prompt": "Count.", "start": 3})
    assert observation == "Count. Start: 3."
    assert info["messages"] == [{"role": "user", "content": "Count. Start: 3."}]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
    env, observation, info = started({"prompt": chat, "start": 3})
    assert info["messages"] == [chat[0], {"role": "user", "content": "Count. Start: 3."}]
    assert observation == "Be brief.\n\nCount. Start: 3."
    assert chat[1]["content"] == "Count."
    assert env._environment.row == {"prompt": chat}
    assert started({"prompt": chat})[2]["messages"] == chat
    assert started({"start": 3})[2]["messages"] == [{"role": "user", "content": " Start: 3."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Count."}]}]
    told = {"type": "text", "text": " Start: 3."}
    assert started({"prompt": parts, "start": 3})[2]["messages"][0]["content"] == [*parts[0]["content"], told]


def test_calls_are_run_in_order_and_answered_one_by_one_until_a_message_has_none():
    env, _, info = started()
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "fail"]
    action = f"<think>{call('add', number=100)}</think>So {call('add', number=2)} and {call('add', number=3)}."
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == ("2\n\n5", 0.0, False, False)
    assert info == {"messages": [{"role": "tool", "name": "add", "content": content} for content in ("2", "5")]}
    result = env.step("I have counted to 5.")
    assert result == ("", 5.0, True, False, {"messages": [], "success": True})
    env.reset(seed=0)
    assert env.step("Nothing.") == ("", 0.0, True, False, {"messages": [], "success": False})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (call("subtract", number=1), "Tool subtract not found."),
        (call("_hidden"), "Tool _hidden not found."),
        (call("reset"), "Tool reset not found."),
        (call("get_reward"), "Tool get_reward not found."),
        (call("broken"), "Tool broken not found."),
        (call("__init__"), "Tool __init__ not found."),
        (call("add"), "missing 1 required positional argument: 'number'"),
        (call("add", numeral=1), "unexpected keyword argument 'numeral'"),
        (call("add", number="1"), "unsupported operand"),
        (call("fail"), "< |im_start|>system"),
        ('<tool_call>{"name": "add", "arguments": {"number": 1}</tool_call>', "a tool call is not JSON"),
        ("<tool_call></tool_call>", "a tool call is not JSON"),
        ('<tool_call>["add", 1]</tool_call>', "a tool call is an object like"),
        ('<tool_call>{"name": null}</tool_call>', "a tool call is an object like"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "the arguments of add are not an object"),
        ('<tool_call>{"name": "add", "arguments": {"number": 1}}', "not closed by </tool_call>".replace("</", "< /")),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "a tool call is not JSON"),
    ],
)
def test_a_mistake_is_answered_by_its_error_and_the_episode_goes_on(written, told):
    env, *_ = started()
    observation, reward, terminated, truncated, info = env.step(written)
    assert (reward, terminated, truncated) == (0.0, False, False)
    (message,) = info["messages"]
    assert message["role"] == "tool"
    assert message["content"] == observation
    assert message["content"].startswith("{'error': ") and told in message["content"]
    assert len(message["content"]) < 400
    assert env.step(call("add", number=1))[0] == "1"  # nothing was counted before


def test_the_last_turn_is_truncated_with_the_reward_so_far():
    env, *_ = started(max_turns=2, success_reward=9)
    assert env.step(call("add", number=4))[1:4] == (0.0, False, False)
    observation, reward, terminated, truncated, info = env.step(call("add", number=4))
    assert (observation, reward, terminated, truncated) == ("8", 8.0, False, True)
    assert info == {"messages": [{"role": "tool", "name": "add", "content": "8"}], "success": False}
    env.reset()
    env.step(call("add", number=9))
    assert env.step("Done.")[4]["success"] is True


def test_one_message_runs_32_calls_at_most():
    env, *_ = started()
    observation, *_ = env.step(call("add", number=1) * 33)
    answers = observation.split("\n\n")
    assert answers[:-1] == [str(count) for count in range(1, 33)]
    assert "33 tool calls in one message; 32 are run" in answers[-1]


def test_rows_stay_as_they_are_and_name_the_group():
    rows = [{"prompt": f"Count {n}.", "kept": []} for n in range(5)]
    env = ToolEnv(Counter, rows)
    seen = {}
    for seed in range(40):
        observation, info = env.reset(seed=seed)
        info["tools"].clear()
        info["messages"].clear()
        seen[info["group"]] = observation
    assert seen == {f"tool_use/{n}": f"Count {n}." for n in range(5)}
    assert all(row["kept"] == [] for row in rows)
    assert len(env.reset()[1]["tools"]) == 2


def test_an_environment_without_a_reward_earns_nothing_and_its_words_are_made_fit_for_tokenizers():
    env = ToolEnv(Silent, [{"prompt": "Poke.", "answer": 3}])
    env.reset()
    assert env._environment.row == {"prompt": "Poke.", "answer": 3}
    assert env.step(call("poke"))[0] == "?"
    assert env.step("")[1:] == (0.0, True, False, {"messages": [], "success": False})


def test_classes_that_do_not_fit_are_refused():
    class NoReset:
        pass

    class Asynchronous(Silent):
        async def wait(self) -> None:
            """Waits."""

    class Unannotated(Silent):
        def add(self, number):
            """Adds."""

    with pytest.raises(ValueError, match="NoReset has no method reset"):
        ToolEnv(NoReset, [{}])
    with pytest.raises(ValueError, match=r"Asynchronous\.wait is asynchronous"):
        ToolEnv(Asynchronous, [{}])
    with pytest.raises(ValueError, match="'number' of the tool 'add' has no annotation"):
        ToolEnv(Unannotated, [{}])
    schema = {"type": "function", "function": {"name": "add"}}
    assert ToolEnv(Unannotated, [{}], tools=[schema]).reset()[1]["tools"] == [schema]
    with pytest.raises(ValueError, match="prompts is empty"):
        ToolEnv(Counter, [])
    with pytest.raises(ValueError, match="max_turns must be at least 1; got 0"):
        ToolEnv(Counter, [{}], max_turns=0)


def test_calls_are_read_as_objects():
    assert tool_calls("none") == []
    assert tool_calls(call("f", a=[1, {"b": None}]) + '<tool_call>{"name": "g"}</tool_call>') == [
        ToolCall("f", {"a": [1, {"b": None}]}),
        ToolCall("g", {}),
    ]


def plain(a: int, b: float, c: str, d: bool, e: list, f: dict):
    """Takes everything.

    It says: more.

    Args:
        a: one
            and more of it
        b (float): two: with a colon
        c: three

        d: four (choices are yours)
        e: five
        f: six
    """


def nested(a: list[list[int]], b: dict[str, list[str]], c: int | None = None, d: str = "x") -> dict[str, float]:
    """
    Nests.

    Args:
        a: one
        b: two
        c: three
        d: four

    Returns:
        What comes of it.

    Raises:
        ValueError: never
    """


def bare():
    """Takes nothing."""


class Holder:
    def method(self, a: str) -> None:
        """Is bound.

        Args:
            a: one

        Returns:
            nothing
        """


TOOLS = [nested, bare, Holder().method, Counter().add, *(getattr(CalculatorEnvironment(), n) for n in ("lookup",))]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__qualname__)
def test_schemas_are_those_of_transformers(tool):
    assert tool_schema(tool) == get_json_schema(tool)


def test_types_in_docstrings_are_left_out_and_long_descriptions_joined():
    properties = tool_schema(plain)["function"]["parameters"]["properties"]
    assert properties == {
        "a": {"type": "integer", "description": "one and more of it"},
        "b": {"type": "number", "description": "two: with a colon"},
        "c": {"type": "string", "description": "three"},
        "d": {"type": "boolean", "description": "four (choices are yours)"},
        "e": {"type": "array", "description": "five"},
        "f": {"type": "object", "description": "six"},
    }


def test_tools_without_a_schema_are_refused():
    def silent(a: int): ...

    def incomplete(a: int):
        """Does."""

    def foreign(a: bytes):
        """Does.

        Args:
            a: one
        """

    for tool, told in [(silent, "no docstring"), (incomplete, "no description"), (foreign, "pass the schemas")]:
        with pytest.raises(ValueError, match=f"{tool.__name__}.*{told}"):
            tool_schema(tool)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * (4 + 5)", 27),
        (" -2 ** 2", -4),
        ("7 // 2 + 7 % 4", 6),
        ("1 / 8", 0.125),
        ("+1.5 - .5", 1.0),
        ("2 ** 0.5", 2**0.5),
        ("2 ** -1", 0.5),
        ("2 ** 1000 - 2 ** 1000", 0),
        ("3 ** 1024", "longer than 1024 bits"),
        ("(-1) ** 1000000000001", -1),
        ("2 ** 2000", "longer than 1024 bits"),
        ("9 ** 9 ** 9 ** 9", "longer than 1024 bits"),
        ("9 ** -9 ** 9", "longer than 1024 bits"),
        ("2 ** 1000 * 2 ** 1000", "longer than 1024 bits"),
        ("9.0 ** 9 ** 9", "too large"),
        ("1e308 * 10", "not real and finite"),
        ("1e999", "not real and finite"),
        ("(-1) ** 0.5", "not real and finite"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("1 % 0", "division by zero"),
        ("", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("1; 2", "not an arithmetic expression"),
        ("(" * 199, "not an arithmetic expression"),
        ("-" * 199 + "1", -1),
        ("1 +" * 67, "at most 200 characters"),
        ("\0", "null bytes|not an"),
        ("\ud800", "surrogates"),
        ("٣", "not an arithmetic expression"),
        ("x", "only numbers"),
        ("True + 1", "only numbers"),
        ("1j", "only numbers"),
        ("'a' * 9", "only numbers"),
        ("~1", "only numbers"),
        ("1 << 9999", "only numbers"),
        ("1 if 1 else 2", "only numbers"),
        ("[1]", "only numbers"),
        ("__import__('os').system('true')", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("(x := 1)", "only numbers"),
        (3, "is a string"),
    ],
)
def test_arithmetic_is_evaluated_and_nothing_else(expression, value):
    if not isinstance(value, str):
        assert evaluate(expression) == value
        return
    with pytest.raises(ValueError, match=value):
        evaluate(expression)


def shopping(seed):
    """An instance, what it asks for, and the total at its prices."""
    environment = CalculatorEnvironment()
    question = environment.reset(prompt="ignored", seed=seed)
    bought = [(int(number), item) for number, item in re.findall(r"(\d+) (\w+)", question)]
    return environment, question, sum(number * environment.lookup(item) for number, item in bought)


def test_prices_and_lists_are_decided_by_the_seed_and_must_be_looked_up():
    questions = {shopping(seed)[1] for seed in range(50)}
    assert len(questions) == 50
    assert [shopping(seed)[1:] for seed in range(9)] == [shopping(seed)[1:] for seed in range(9)]
    for seed in range(50):
        environment, question, total = shopping(seed)
        assert environment.get_reward() == 0.0
        assert environment.answer(float(total)) == "noted"
        assert environment.get_reward() == 1.0
        assert str(total) not in re.findall(r"\d+", question)
        with pytest.raises(ValueError, match="there is no price of 'gold'; there are prices of apples, bread"):
            environment.lookup("gold")


def test_only_the_first_answer_counts_and_only_numbers_are_answers():
    environment, _, total = shopping(7)
    for no_number in (str(total), None, True, [total]):
        with pytest.raises(ValueError, match="total must be a number"):
            environment.answer(no_number)
    environment.answer(total + 1)
    with pytest.raises(ValueError, match=f"was given already: {total + 1}"):
        environment.answer(total)
    assert environment.get_reward() == 0.0
    environment.reset(seed=7)
    environment.answer(total)
    assert environment.get_reward() == 1.0


def test_tasks_are_as_many_as_asked_for():
    env = calculator_env(num_tasks=3, max_turns=1)
    assert {env.reset(seed=seed)[1]["group"] for seed in range(30)} == {f"tool_use/{n}" for n in range(3)}
    env.reset(seed=0)
    assert env.step(call("calculate", expression="6 * 7"))[0::3] == ("42", True)


class Shopper(Qwen2ForCausalLM):
    """A real model whose `generate` says what an expert of the calculator's environment says."""

    def generate(self, input_ids, attention_mask, generation_config, **_):
        said = [self.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        spoken = [self.tokenizer(shop(text) + "<|im_end|>")["input_ids"] for text in said]
        longest = max(map(len, spoken))
        padded = [ids + [self.tokenizer.pad_token_id] * (longest - len(ids)) for ids in spoken]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def shop(conversation):
    """The next message: of the conversation's first shopper at least; the second one is bad at sums."""
    bought = re.findall(r"(\d+) ([a-z]+)", re.search("What do (.*) cost", conversation)[1])
    answers = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", conversation, re.DOTALL)
    if not answers:
        return "".join(call("lookup", item=item) for _, item in bought)
    if len(answers) == len(bought):
        terms = [f"{number} * {price}" for (number, _), price in zip(bought, answers, strict=True)]
        return call("calculate", expression=" + ".join(terms))
    if len(answers) == len(bought) + 1:
        return call("answer", total=int(answers[-1]) + ("Badly" in conversation))
    return "Done."


@pytest.fixture
def byte_tokenizer():
    """Qwen3's chat template over 256 bytes and the tokens of turns."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*special, *sorted(ByteLevel.alphabet())])},
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


def test_the_calculators_environment_works_as_environment_factory_of_trls_trainer(byte_tokenizer, cpu_args):
    """TRL finds the tools, runs them as the model calls them, and takes the reward."""
    config = Qwen2Config(
        vocab_size=len(byte_tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
    )
    model = Shopper(config)
    model.tokenizer = byte_tokenizer
    prompts = [{"prompt": [{"role": "user", "content": how}], "seed": 3} for how in ("Well. ", "Badly. ")]
    cpu_args.pop("activation_checkpointing")
    args = GRPOConfig(
        **cpu_args,
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=2048,
        max_steps=1,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(prompts),
        processing_class=byte_tokenizer,
        environment_factory=CalculatorEnvironment,
    )
    assert [tool.__name__ for tool in trainer.tools] == ["answer", "calculate", "lookup"]
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/CalculatorEnvironment/mean"] == 0.5  # of the good shopper and the bad one
    assert logged["tools/failure_frequency"] == 0
    assert logged["tools/call_frequency"] == len(trainer.environments[0].reset(seed=3).split(" and ")) + 2
