"""The quickstart's model, with words for this world and a chat template."""

from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from recipes.quickstart import tiny_model
from recipes.text_world.world import ACTIONS, SQUARES

__all__ = ["build_model", "build_tokenizer"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PHRASES = ["<user>", "<assistant>", "at ", ", goal ", *SQUARES, *ACTIONS]


def build_tokenizer() -> Qwen2Tokenizer:
    """A token for each word and each square."""
    tokenizer = tiny_model.build_tokenizer(PHRASES)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(seed: int) -> Qwen2ForCausalLM:
    """0.4 M random weights."""
    return tiny_model.build_model(build_tokenizer(), seed=seed)
