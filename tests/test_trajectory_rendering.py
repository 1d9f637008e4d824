import pytest
from trajectory_tools import chat_tokenizer, ragged_trajectories, tokens_by_hand

from online_sft.trajectories.rendering import ACTION, NEITHER, OBSERVATION, Renderer
from recipes.tiny_models import build_byte_tokenizer

QWEN = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | length }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 2"},
    {"role": "assistant", "content": "\n3 é"},
    {"role": "tool", "content": "ok"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "bye"},
]


def texts(tokenizer, rendered, kind):
    """What each message has of this kind."""
    pairs = list(zip(rendered.input_ids, rendered.kinds, rendered.messages, strict=True))
    return {
        index: tokenizer.decode([token for token, its, message in pairs if its == kind and message == index])
        for index in sorted({message for _, its, message in pairs if its == kind})
    }


@pytest.mark.parametrize("template", [QWEN, None], ids=["headers and line breaks", "no template"])
def test_an_action_is_what_is_generated_and_an_observation_what_is_said(template):
    tokenizer = build_byte_tokenizer(template)
    rendered = Renderer(tokenizer)(CHAT)
    assert texts(tokenizer, rendered, ACTION) == {2: "\n3 é<|end|>", 5: "bye<|end|>"}
    assert texts(tokenizer, rendered, OBSERVATION) == {
        0: "Be brief.<|end|>", 1: "1 + 2<|end|>", 3: "ok<|end|>", 4: "<|end|>",
    }  # fmt: skip
    assert texts(tokenizer, rendered, NEITHER).get(-1, "").count("<|im_start|>") == (6 if template else 0)


def test_the_tokens_are_those_of_the_chat_template():
    tokenizer = build_byte_tokenizer(QWEN)
    assert Renderer(tokenizer)(CHAT).input_ids == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]


@pytest.mark.parametrize("template", [QWEN, None])
def test_the_prompt_ends_where_the_action_begins(template):
    """What the engine reads before an action is, token by token, what stands before it in training."""
    tokenizer = build_byte_tokenizer(template)
    rendered = Renderer(tokenizer)(CHAT)
    for index in (2, 5):
        start = rendered.messages.index(index)
        assert Renderer(tokenizer).prompt_ids(CHAT[:index]) == rendered.input_ids[:start]


def test_tokens_and_kinds_are_those_by_hand():
    tokenizer, names = chat_tokenizer(), {None: NEITHER, "action": ACTION, "observation": OBSERVATION}
    for trajectory in ragged_trajectories(20):
        rendered = Renderer(tokenizer)(trajectory.messages())
        by_hand = tokens_by_hand(trajectory, tokenizer)
        assert rendered.input_ids == [token for token, _, _ in by_hand]
        opening = len(trajectory.observations[0])  # of which nobody learns, though the environment says it
        kinds = [
            NEITHER if its < opening else kind for kind, its in zip(rendered.kinds, rendered.messages, strict=True)
        ]
        assert kinds == [names[kind] for _, kind, _ in by_hand]


def test_tools_are_shown_and_belong_to_nobody():
    tokenizer = build_byte_tokenizer(QWEN)
    with_tools = Renderer(tokenizer)(CHAT, tools=[{"type": "function"}])
    assert tokenizer.decode(with_tools.input_ids).startswith("<|im_start|>system\nTools: 1<|end|>")
    for kind in (ACTION, OBSERVATION):
        assert texts(tokenizer, with_tools, kind) == texts(tokenizer, Renderer(tokenizer)(CHAT), kind)


def test_a_token_across_a_border_belongs_to_what_follows(tokenizer):
    """ " =" is one token of this tokenizer; the action begins in its middle."""
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} {% else %}{{ m.content }}{{ eos_token }}"
    )
    template += "{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "=1"}]
    rendered = Renderer(tokenizer, template)(messages)
    tokens = tokenizer.convert_ids_to_tokens(rendered.input_ids)
    assert tokens[1] == " =", tokens
    assert rendered.kinds[:2] == [OBSERVATION, ACTION]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|end|>{% endfor %}",
         "renders the first"),
        ("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}",
         "does not begin message 1 with its generation prompt"),
        ("{% for m in messages %}{{ m.role }}<|end|>{% endfor %}", "does not show the content"),
        ("{% if messages | length < 3 %}{{ raise_exception('3 or none') }}{% endif %}<|end|>", "3 or none"),
    ],
)  # fmt: skip
def test_a_template_that_hides_whose_tokens_are_whose_is_refused(template, words):
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")]
    with pytest.raises(ValueError, match=words):
        Renderer(build_byte_tokenizer(template))(messages)


def test_the_assistant_cannot_speak_first():
    with pytest.raises(ValueError, match="the assistant speaks first"):
        Renderer(chat_tokenizer())([{"role": "assistant", "content": "hi"}])
