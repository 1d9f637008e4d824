"""NeuralRewardModel against one unpadded forward pass per row, and against TRL's RewardTrainer, which trained it."""

import copy

import pytest
import torch
from reward_model_tools import (
    CHAT_TEMPLATE,
    as_chat,
    build_classifier,
    logits_of,
    pairs_of_sevens,
    reward_trainer,
)
from torch.testing import assert_close

from online_sft import NeuralRewardModel

PROMPTS = ["1 + 1 =", "2 =", "70 + 30 =", "5 + 2 =", "9 ="]
COMPLETIONS = ["7", " Answer: 2345", "100", "-", "12345"]
EOS = "<|end|>"


def score_of(model, tokenizer, prompt, completion, *, eos=EOS, position=-1, cut=slice(None)):
    """The logit of one label, of prompt + completion + EOS."""
    return logits_of(model, tokenizer(prompt + completion + eos)["input_ids"][cut], position)[0].item()


def scores_of(model, tokenizer, **options):
    return [score_of(model, tokenizer, *row, **options) for row in zip(PROMPTS, COMPLETIONS, strict=True)]


def assert_same(ours, expected):
    """At float32's default tolerance: padding changes the order of sums."""
    assert_close(torch.tensor(ours), torch.tensor(expected))


@pytest.fixture
def classifier(tokenizer):
    return build_classifier(tokenizer)


@pytest.fixture(scope="module", params=["own_pad", "pad_is_eos"])
def trained(request, tokenizer, tmp_path_factory):
    """(model, tokenizer, trainer), with a padding token of its own or the EOS, which many tokenizers have."""
    tokenizer = copy.deepcopy(tokenizer)
    if request.param == "pad_is_eos":
        tokenizer.pad_token = EOS
    tokenizer.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp(request.param)
    trainer = reward_trainer(build_classifier(tokenizer), tokenizer, pairs_of_sevens(1024, 0), folder, max_steps=40)
    trainer.train()
    return trainer.model, tokenizer, trainer


# --- as it was trained


def test_a_trained_reward_model_ranks_pairs_that_it_has_not_seen(trained):
    model, tokenizer, _ = trained
    held_out = pairs_of_sevens(200, seed=1)
    reward = NeuralRewardModel(model, tokenizer)
    prompts = [row["prompt"] for row in held_out]
    chosen, rejected = (reward(prompts, [row[side] for row in held_out]) for side in ("chosen", "rejected"))
    margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
    assert sum(margin > 0 for margin in margins) / 200 > 0.97


@pytest.mark.parametrize("form", [dict, as_chat], ids=["plain", "chat"])
def test_scores_are_those_of_the_trainer_that_trained_the_model(trained, tmp_path, form):
    """Its tokens, its collator, its padding and the model's own head; plain texts and chats."""
    model, tokenizer, _ = trained
    rows = [form(row) for row in pairs_of_sevens(16, seed=2)]
    theirs = reward_trainer(model, tokenizer, rows, tmp_path)
    batch = theirs.data_collator([theirs.train_dataset[i] for i in range(16)])
    with torch.no_grad():
        expected = model.eval()(**batch).logits[:, 0]
    ours = NeuralRewardModel(model, tokenizer)
    prompts = [row["prompt"] for row in rows]
    scores = [score for side in ("chosen", "rejected") for score in ours(prompts, [row[side] for row in rows])]
    assert_same(scores, expected.tolist())


# --- the formula


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_score_is_that_of_one_unpadded_row_with_its_eos(classifier, tokenizer, batch_size):
    expected = scores_of(classifier, tokenizer)
    assert max(expected) - min(expected) > 0.5, "the scores must differ for this test to mean anything"
    rewards = NeuralRewardModel(classifier, tokenizer, batch_size=batch_size)(PROMPTS, COMPLETIONS)
    assert_same(rewards, expected)


def test_one_label_with_use_sigmoid_is_the_sigmoid_of_the_logit(classifier, tokenizer):
    expected = torch.tensor(scores_of(classifier, tokenizer)).sigmoid().tolist()
    assert_same(NeuralRewardModel(classifier, tokenizer, use_sigmoid=True)(PROMPTS, COMPLETIONS), expected)


def test_two_labels_are_the_log_odds_of_label_1_or_its_probability(tokenizer):
    model = build_classifier(tokenizer, num_labels=2)
    rows = [tokenizer(p + c + EOS)["input_ids"] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    log_p = torch.stack([logits_of(model, ids).log_softmax(-1) for ids in rows])
    assert_same(NeuralRewardModel(model, tokenizer)(PROMPTS, COMPLETIONS), (log_p[:, 1] - log_p[:, 0]).tolist())
    assert_same(NeuralRewardModel(model, tokenizer, use_sigmoid=True)(PROMPTS, COMPLETIONS), log_p[:, 1].exp().tolist())


def test_an_eos_that_is_there_is_not_added_again(classifier, tokenizer):
    with_eos = [completion + EOS for completion in COMPLETIONS]
    assert_same(NeuralRewardModel(classifier, tokenizer)(PROMPTS, with_eos), scores_of(classifier, tokenizer))


def test_a_completion_that_the_policy_did_not_finish_has_no_eos(classifier, tokenizer):
    end = 99  # of the policy, whose tokens are other ones
    ids = [[5, end], [5, 6], [5, 98], [], [end]]
    reward = NeuralRewardModel(classifier, tokenizer, policy_eos_token_ids=[end, 98])
    expected = [
        score_of(classifier, tokenizer, prompt, completion, eos=EOS if finished else "")
        for prompt, completion, finished in zip(PROMPTS, COMPLETIONS, [1, 0, 1, 0, 1], strict=True)
    ]
    assert_same(reward(PROMPTS, COMPLETIONS, completion_ids=ids), expected)


def test_without_knowing_the_policys_eos_every_completion_counts_as_finished(classifier, tokenizer):
    expected = scores_of(classifier, tokenizer)
    ids = [[5, 6]] * 5
    assert_same(NeuralRewardModel(classifier, tokenizer)(PROMPTS, COMPLETIONS, completion_ids=ids), expected)
    known = NeuralRewardModel(classifier, tokenizer, policy_eos_token_ids=[99])
    assert_same(known(PROMPTS, COMPLETIONS), expected)


def test_too_long_texts_lose_their_beginning_and_are_counted(classifier, tokenizer):
    logged = {}
    reward = NeuralRewardModel(classifier, tokenizer, max_length=8, name="rm")
    rewards = reward(PROMPTS, COMPLETIONS, log_metric=logged.__setitem__)
    assert_same(rewards, scores_of(classifier, tokenizer, cut=slice(-8, None)))
    lengths = [len(tokenizer(p + c + EOS)["input_ids"]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert 8 in lengths or 9 in lengths
    assert logged == {"rm/truncated": sum(length > 8 for length in lengths) / 5}


def test_truncation_keeps_the_bos_token(classifier, tokenizer):
    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = "3"
    ids = tokenizer("31 + 45 =678" + EOS)["input_ids"]
    reward = NeuralRewardModel(classifier, with_bos, max_length=6)
    assert_same(reward(["31 + 45 ="], ["678"])[0], logits_of(classifier, ids[:1] + ids[-5:])[0].item())


@pytest.mark.parametrize("limited", ["model", "tokenizer"])
def test_the_length_that_model_and_tokenizer_can_take_is_the_limit_by_default(tokenizer, limited):
    model = build_classifier(tokenizer, max_position_embeddings=6 if limited == "model" else 128)
    tokenizer = copy.deepcopy(tokenizer)
    expected = scores_of(model, tokenizer, cut=slice(-6, None))
    if limited == "tokenizer":
        tokenizer.model_max_length = 6
    assert_same(NeuralRewardModel(model, tokenizer)(PROMPTS, COMPLETIONS), expected)


# --- where the score is read


def test_a_tokenizer_that_pads_with_eos_does_not_move_the_reading(classifier, tokenizer):
    """TRL writes the tokenizer's padding token into the model's config, and the head then skips the EOS."""
    expected = scores_of(classifier, tokenizer)
    pads_with_eos = copy.deepcopy(tokenizer)
    pads_with_eos.pad_token = EOS
    assert_same(NeuralRewardModel(classifier, pads_with_eos)(PROMPTS, COMPLETIONS), expected)
    assert classifier.config.pad_token_id == tokenizer.pad_token_id
    before_eos = scores_of(classifier, tokenizer, position=-2)
    assert min(abs(a - b) for a, b in zip(expected, before_eos, strict=True)) > 1e-3


def test_a_model_whose_own_padding_token_is_eos_is_read_before_it(tokenizer):
    model = build_classifier(tokenizer, pad_token_id=tokenizer.eos_token_id)
    rewards = NeuralRewardModel(model, tokenizer)(PROMPTS, COMPLETIONS)
    assert_same(rewards, scores_of(model, tokenizer, position=-2))


def test_a_model_without_a_padding_token_is_read_at_the_end_one_row_at_a_time(tokenizer, caplog):
    model = build_classifier(tokenizer, pad_token_id=None)
    rewards = NeuralRewardModel(model, tokenizer)(PROMPTS, COMPLETIONS)
    assert_same(rewards, scores_of(model, tokenizer))
    assert "has no config.pad_token_id, so its rows are scored one at a time" in caplog.text


def test_padding_is_on_the_right_whatever_the_tokenizer_says(classifier, tokenizer):
    seen = []
    classifier.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs), with_kwargs=True)
    NeuralRewardModel(classifier, tokenizer)(["1 =", "22 ="], ["3", "44"])
    pad = tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"
    assert seen[0]["input_ids"].tolist() == [
        [*tokenizer("1 =3" + EOS)["input_ids"], pad, pad],
        tokenizer("22 =44" + EOS)["input_ids"],
    ]
    assert seen[0]["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]


def test_the_model_is_called_in_eval_mode_without_gradients_as_often_as_rows_demand(tokenizer):
    model = build_classifier(tokenizer, attention_dropout=0.5)
    expected = scores_of(model, tokenizer)
    with_gradients = []
    model.register_forward_hook(lambda *_: with_gradients.append(torch.is_grad_enabled()))
    assert_same(NeuralRewardModel(model.train(), tokenizer, batch_size=2)(PROMPTS, COMPLETIONS), expected)
    assert with_gradients == [False] * 3


def test_a_bfloat16_model_loses_nothing_after_its_logits(tokenizer):
    model = build_classifier(tokenizer, num_labels=2).bfloat16()
    differences = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(prompt + completion + EOS, return_tensors="pt")).logits[0].double()
        differences.append((logits[1] - logits[0]).item())
    assert any(difference != torch.tensor(difference).bfloat16().item() for difference in differences)
    rewards = NeuralRewardModel(model, tokenizer, batch_size=1)(PROMPTS, COMPLETIONS)
    assert_close(rewards, differences, rtol=1e-6, atol=0)


def test_the_name_is_the_last_part_of_the_path_or_what_was_given(classifier, tokenizer):
    assert NeuralRewardModel(classifier, tokenizer).__name__ == "Qwen2ForSequenceClassification"
    classifier.config._name_or_path = "runs/helpful/"
    assert NeuralRewardModel(classifier, tokenizer).__name__ == "helpful"
    assert NeuralRewardModel(classifier, tokenizer, name="mine").__name__ == "mine"


class Wrapper(torch.nn.Module):
    """What sharding makes of a model: the same outputs, no `config` of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        return self.inner(**inputs)


def test_a_wrapped_model_keeps_name_config_and_eos_ids_and_gets_the_policys_where_it_has_none(classifier, tokenizer):
    reward = NeuralRewardModel(classifier, tokenizer)
    placed = reward.placed(Wrapper, torch.device("cpu"), [99])
    assert placed.__name__ == "Qwen2ForSequenceClassification"
    expected = scores_of(classifier, tokenizer, eos="")
    assert_same(placed(PROMPTS, COMPLETIONS, completion_ids=[[5]] * 5), expected)
    assert reward.policy_eos_token_ids == (), "the original is as it was"
    own = NeuralRewardModel(classifier, tokenizer, policy_eos_token_ids=[5]).placed(Wrapper, torch.device("cpu"), [99])
    assert_same(own(PROMPTS, COMPLETIONS, completion_ids=[[5]] * 5), scores_of(classifier, tokenizer))


# --- what cannot work


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (3, {}, "reward model 'rm' has 3 labels, which make no single score"),
        (1, {"max_length": 1}, "max_length must be at least 2 tokens; got 1"),
        (1, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_what_cannot_score_is_refused_when_it_is_made(tokenizer, labels, options, message):
    with pytest.raises(ValueError, match=message):
        NeuralRewardModel(build_classifier(tokenizer, num_labels=labels), tokenizer, name="rm", **options)


def test_a_score_that_is_not_finite_is_named_with_model_and_row(classifier, tokenizer):
    with torch.no_grad():
        classifier.model.embed_tokens.weight[tokenizer("-")["input_ids"][0]] = torch.nan
    with pytest.raises(ValueError, match="reward model 'rm' gave row 3 of 5 the score nan"):
        NeuralRewardModel(classifier, tokenizer, name="rm", batch_size=2)(PROMPTS, COMPLETIONS)


def test_a_language_model_is_no_classifier(model, tokenizer):
    with pytest.raises(ValueError, match=r"returned logits of shape \[5, 10, 16\].*; expected \[5, 2\]"):
        NeuralRewardModel(model, tokenizer)(PROMPTS, COMPLETIONS)


def test_a_chat_needs_a_chat_template(classifier, tokenizer):
    row = as_chat(pairs_of_sevens(1, 0)[0])
    with pytest.raises(ValueError, match="the tokenizer of reward model 'rm' has no chat template"):
        NeuralRewardModel(classifier, tokenizer, name="rm")([row["prompt"]], [row["chosen"]])
