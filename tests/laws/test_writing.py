"""Writing: min-p, penalty, bias, log-probabilities, answers among given ones; each against the whole sequence."""

from collections import Counter
from typing import Any

import pytest
import torch

from monoformer.config.generate import GenerateConfig
from monoformer.document import Document, Text
from monoformer.generate.session import Request
from monoformer.generate.text import adjust, choose_token, choose_tokens
from monoformer.pipeline import Pipeline
from monoformer.randomness import generator
from tests import tiny
from tests.laws.test_generate import CAPTION, WRITE, T, ascii_model, engine, events_of, request, states_of, words_of

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])


def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest() -> None:
    random = generator(0, "min_p")
    for min_p, kept in ((0.7, {1}), (0.6, {1, 2}), (0.2, {1, 2, 3, 4}), (0.1, {0, 1, 2, 3, 4})):
        config = GenerateConfig(temperature=1.0, min_p=min_p)
        assert Counter(choose_token(PROBABILITIES.log(), config, random) for _ in range(300)).keys() == kept


def test_the_penalty_and_the_bias_are_arithmetic_on_logits() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0])
    seen = torch.tensor([True, True, False, False])
    config = GenerateConfig(repetition_penalty=2.0, logit_bias=((3, -4.0),))
    assert adjust(logits, config, seen=seen).tolist() == [1.0, -2.0, 0.5, -1.0]


def test_rows_are_chosen_as_each_alone_and_broken_ones_are_told() -> None:
    logits = torch.stack([PROBABILITIES.log(), PROBABILITIES.flip(0).log(), torch.full((5,), torch.nan)])
    logits = torch.cat([logits, torch.full((1, 5), -torch.inf)])
    settings = [GenerateConfig(), GenerateConfig(temperature=1.0), GenerateConfig(temperature=1.0), GenerateConfig()]
    randoms = [generator(n, "row") for n in range(4)]
    expected = choose_token(logits[1], settings[1], generator(1, "row"))
    assert choose_tokens(logits, settings, randoms) == [1, expected, -1, -1]


def test_a_penalty_stops_repeating_and_a_bias_forbids() -> None:
    made = ascii_model()
    plain, _ = words_of(made, max_tokens=12)
    first = T.encode(plain)[0]
    assert words_of(made, max_tokens=12, logit_bias=((first, -1000.0),))[0][:1] != plain[:1]
    server = engine(made)
    server.add(request(made, WRITE, "text", max_tokens=12, repetition_penalty=1e6))
    (session,) = server.waiting
    while server.active or server.waiting:
        server.step()
    assert len(set(session.tokens)) == len(session.tokens) == 12
    assert not set(session.tokens) & set(session.layouts[0].ids)


@pytest.mark.parametrize("document", [WRITE, CAPTION], ids=["text", "picture first"])
def test_log_probabilities_are_those_of_the_whole_sequence(document: Document) -> None:
    made = tiny.pretrained()
    asked = request(made, document, "text", max_tokens=5, temperature=2.0)
    fields: dict[str, Any] = {"document": document, "want": "text", "settings": asked.settings}
    found = events_of(engine(made), Request(**fields, log_probabilities=3, prompt_log_probabilities=True))
    layout = made.sequencer().prompt(document)
    for score in [score for event in found for score in event.scores if event.kind == "text"]:
        logs = made.model.text(states_of(made, layout)[-1]).detach().log_softmax(dim=0)
        assert score.log_probability == pytest.approx(float(logs[score.token]), abs=1e-4)
        assert [token for token, _ in score.top] == logs.topk(3).indices.tolist()
        layout.add_token(score.token)
    layout = made.sequencer().prompt(document)
    logs = made.model.text(states_of(made, layout)).detach().log_softmax(dim=1)
    (prompt,) = [event.scores for event in found if event.kind == "prompt"]
    patches = [n for n, token in enumerate(layout.ids) if n and token not in (T.patch, T.time, T.eoi)]
    assert [score.token for score in prompt] == [layout.ids[n] for n in patches]
    for score, index in zip(prompt, patches, strict=True):
        assert score.log_probability == pytest.approx(float(logs[index - 1, score.token]), abs=1e-4)


ANSWERS = ("red", "red circle", "large", "a")


@pytest.mark.parametrize("mode", ["adaln", "token"])
def test_an_answer_is_the_likeliest_whole_one(mode: str) -> None:
    made = tiny.pretrained(mode)
    expected = []
    for text in ANSWERS:
        layout = made.sequencer().prompt(CAPTION)
        first = len(layout)
        for token in (*T.encode(text), T.eos):
            layout.add_token(token)
        logs = made.model.text(states_of(made, layout)).detach().log_softmax(dim=1)
        expected.append(sum(float(logs[n - 1, layout.ids[n]]) for n in range(first, len(layout))))
    settings = request(made, CAPTION, "text").settings
    events = events_of(engine(made), Request(document=CAPTION, want="text", settings=settings, choices=ANSWERS))
    assert events[0].likelihoods == pytest.approx(expected, abs=1e-3)
    assert events[0].text == ANSWERS[expected.index(max(expected))]
    assert events[-1].reason == "stop"
    assert events[-1].made == Document((Text(events[0].text),))


def test_what_has_no_effect_is_refused() -> None:
    settings, made = GenerateConfig(), tiny.pretrained()
    for wrong in (
        {"choices": ("a", "a")}, {"choices": ("a",), "want": "any"}, {"log_probabilities": 1, "want": "image"},
        {"prompt_log_probabilities": True}, {"previews": 2},
    ):  # fmt: skip
        fields: dict[str, Any] = {"want": "text", **wrong}
        with pytest.raises(ValueError, match=r"choices|log_probabilities|previews"):
            Request(document=WRITE, settings=settings, **fields)
    with pytest.raises(ValueError, match="no token that can be written"):
        engine(made).add(request(made, WRITE, "text", logit_bias=((T.patch, 1.0),)))


def test_the_pipeline_tells_the_likelihoods_that_choices_are_chosen_by() -> None:
    pipeline, prompts, choices = Pipeline(ascii_model()), ["the red", "a blue"], ["circle", "square", "left of"]
    found = pipeline.score(prompts, choices)
    assert [[*one] for one in found] == [choices] * 2
    assert pipeline.generate_text(prompts, choices=choices) == [max(one, key=lambda c: one[c]) for one in found]
    (alone,) = pipeline.score(prompts[1], choices[2])
    assert alone["left of"] == pytest.approx(found[1]["left of"], rel=1e-5)
    with pytest.raises(ValueError, match="choices must be 1 or more"):
        pipeline.score("the red", [])
