"""OpenAI's own client passes every call: talks, texts, pictures and edits, at once and streamed."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image as PILImage

from monoformer.document import Document, Image, Text
from monoformer.pipeline import Pipeline
from tests import tiny
from tests.laws.test_generate import states_of
from tests.serve.conftest import Running, running

USER = {"role": "user", "content": "a red circle"}
BOI, EOS = tiny.tokenizer().boi, tiny.tokenizer().eos


def png(picture: PILImage.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def opened(encoded: str) -> np.ndarray:
    with PILImage.open(io.BytesIO(base64.b64decode(encoded.removeprefix("data:image/png;base64,")))) as picture:
        return np.array(picture)


def square(color: str = "red", size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    return PILImage.new("RGB", size, color)


def shown(picture: PILImage.Image) -> dict[str, Any]:
    address = "data:image/png;base64," + base64.b64encode(png(picture)).decode()
    return {"type": "image_url", "image_url": {"url": address}}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "monoformer"
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        client.chat.completions.create(model="gpt", messages=[USER])


def test_a_talk_in_words(client: openai.OpenAI, server: Running) -> None:
    settings: dict[str, Any] = {"model": "tiny", "messages": [USER], "temperature": 1.0, "seed": 3, "max_tokens": 6}
    settings |= {"modalities": ["text"], "logit_bias": {str(EOS): -100}}
    made = client.chat.completions.create(**settings, n=2, logprobs=True, top_logprobs=2)
    one, two = made.choices
    expected = server.service.pipeline.generate(
        Document((Text("a red circle", "user"),)),
        want="text", temperature=1.0, seed=3, max_tokens=6, logit_bias={EOS: -100.0},
    )[0].segments[0]  # fmt: skip
    assert one.message.content == expected.text != two.message.content
    assert (one.finish_reason, one.index, two.index) == ("length", 0, 1)
    usage = made.usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    content = one.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace") == one.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    text, finish = "", None
    scores = []
    for chunk in client.chat.completions.create(
        **settings, stream=True, logprobs=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            scores += choice.logprobs.content if choice.logprobs else []
    assert (text, finish) == (one.message.content, "length")
    assert [token.logprob for token in scores] == pytest.approx([token.logprob for token in content], abs=1e-4)
    assert chunk.usage.completion_tokens == 6


def test_stop_and_seeds(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "tiny", "messages": [USER], "temperature": 1.5, "modalities": ["text"], "max_completion_tokens": 8,
        "logit_bias": {str(EOS): -100},
    }  # fmt: skip
    settings["extra_body"] = {"top_k": 100}
    said = client.chat.completions.create(**settings, seed=1).choices[0].message.content
    again = client.chat.completions.create(**settings, seed=1, stop=said[2:4]).choices[0]
    assert (again.message.content, again.finish_reason) == (said[: said.index(said[2:4])], "stop")
    others = {client.chat.completions.create(**settings).choices[0].message.content for _ in range(3)}
    assert len(others) > 1, "without a seed every answer has one of its own"


def test_a_talk_streams_words_and_a_picture_and_words(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "tiny", "messages": [USER], "temperature": 1.0, "max_tokens": 12, "logit_bias": {str(BOI): 3.5},
        "extra_body": {"size": "8x8", "steps": 4},
    }  # fmt: skip
    for seed in range(30):  # until one writes, draws and writes again
        message = client.chat.completions.create(**settings, seed=seed).choices[0].message
        images = (message.model_extra or {}).get("images") or []
        if images and 0 < images[0]["offset"] < len(message.content):
            break
    else:
        pytest.fail("no seed wrote, drew, and wrote again")
    settings["extra_body"] |= {"partial_images": 2}
    kinds, text, pictures, previews = [], "", [], []
    for chunk in client.chat.completions.create(**settings, seed=seed, stream=True):
        delta = chunk.choices[0].delta
        more = delta.model_extra or {}
        if delta.content:
            kinds.append("text")
            text += delta.content
        if progress := more.get("image_progress"):
            kinds.append("progress")
            assert progress["steps"] == 4
            previews += [progress["image"]] if progress.get("image") else []
        if more.get("images"):
            kinds.append("image")
            pictures += more["images"]
    assert text == message.content
    assert pictures == images
    assert len(previews) == len(pictures)  # each after 2 of 4 steps
    assert opened(previews[0]["image_url"]["url"]).shape == (8, 8, 3)
    first = kinds.index("image")
    assert kinds[first - 4 : first] == ["progress"] * 4
    assert "text" in kinds[: first - 4]
    assert "text" in kinds[first:]
    # the answer goes back as it came, and the picture is where it was
    follow = [USER, message.model_dump(), {"role": "user", "content": [{"type": "text", "text": "why?"}]}]
    settings = {"model": "tiny", "messages": follow, "max_tokens": 2, "modalities": ["text"]}
    assert client.chat.completions.create(**settings).usage.prompt_tokens > 8 + 4 * len(images)


def test_pictures_are_read(client: openai.OpenAI, server: Running) -> None:
    parts = [shown(square()), {"type": "text", "text": "what is it?"}]
    made = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], modalities=["text"], temperature=0, max_tokens=6
    )
    expected = server.service.pipeline.answer(square(), "what is it?", max_tokens=6)[0]
    assert made.choices[0].message.content.strip() == expected
    picture = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], modalities=["image"], seed=2
    )
    assert len(picture.choices[0].message.model_extra["images"]) == 1
    assert picture.choices[0].finish_reason == "stop"


def test_plain_texts(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "tiny", "prompt": ["the red", "a"], "n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 4,
        "logit_bias": {str(EOS): -100},
    }  # fmt: skip
    made = client.completions.create(**settings, logprobs=1, echo=True)
    texts = [choice.text for choice in made.choices]
    assert [text.startswith(start) for text, start in zip(texts, ["the red"] * 2 + ["a"] * 2, strict=True)] == [
        True
    ] * 4
    (prompt, scores) = tiny.tokenizer().encode("the red"), made.choices[0].logprobs
    assert len(scores.tokens) == len(prompt) + 4
    assert scores.text_offset[len(prompt)] == len("the red")
    assert made.usage.completion_tokens == 16
    streamed = [""] * 4
    for chunk in client.completions.create(**settings, stream=True, echo=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts
    assert chunk.usage.completion_tokens == 16


def test_log_probabilities_of_a_prompt(client: openai.OpenAI, server: Running) -> None:
    """As OpenAI's contract has it, and lm-eval's `local-completions` needs it."""
    made, text = server.service.pipeline.pretrained, "the large circle \u00e9"
    ids = made.tokenizer.encode(text)
    layout = made.sequencer().tokens(ids)
    logs = made.model.text(states_of(made, layout)).detach().log_softmax(dim=1)[:-1].tolist()
    asked: dict[str, Any] = {"model": "tiny", "echo": True, "logprobs": 1, "temperature": 0}
    bos = made.tokenizer.bos
    for prompt, tokens in ((text, ids), (ids, ids), ([bos, *ids], [bos, *ids])):
        choice = client.completions.create(prompt=prompt, max_tokens=0, **asked).choices[0]
        scores = choice.logprobs
        assert (choice.text, choice.finish_reason) == (text, "length")
        assert len(scores.tokens) == len(tokens) == len(scores.top_logprobs)
        assert (scores.token_logprobs[0], scores.top_logprobs[0]) == (None, None)
        first = len(logs) - len(tokens) + 1
        for found, row, token in zip(scores.token_logprobs[1:], logs[first:], tokens[1:], strict=True):
            assert found == pytest.approx(row[token], abs=1e-3)
        assert [max(top.values()) for top in scores.top_logprobs[1:]] == pytest.approx(
            [max(row) for row in logs[first:]], abs=1e-3
        )
        assert scores.text_offset[0] == 0
        assert "".join(scores.tokens[:-2]) == text[:-1], "the last character is two tokens"
        assert scores.text_offset[-2:] == [len(text) - 1] * 2
        events = list(client.completions.create(prompt=prompt, max_tokens=2, stream=True, **asked))
        assert events[0].choices[0].logprobs == scores
        whole = client.completions.create(prompt=prompt, max_tokens=2, **asked).choices[0]
        assert "".join(event.choices[0].text for event in events) == whole.text
        told = [
            log for event in events if event.choices[0].logprobs for log in event.choices[0].logprobs.token_logprobs
        ]
        assert told[1:] == pytest.approx(whole.logprobs.token_logprobs[1:], abs=1e-4)
        assert len(told) == len(tokens) + 2 or whole.finish_reason == "stop"
    both = client.completions.create(model="tiny", prompt=[ids, ids[:2]], max_tokens=1, echo=True).choices
    assert [choice.text.startswith(start) for choice, start in zip(both, (text, "the"), strict=True)] == [True, True]


def test_settings_of_the_folder_that_a_call_makes_ineffective() -> None:
    made = tiny.pretrained()
    defaults = replace(
        made.generate, sampler="ddim", eta=0.5, negative="blue", guidance_rescale=0.5, guidance_interval=(0.1, 0.9),
        temperature=1.0, top_k=5,
    )  # fmt: skip
    made = replace(made, generate=defaults)
    with running(pipeline=Pipeline(made, slots=4)) as own, own.client() as client:
        for given in ({"sampler": "euler"}, {"guidance": 1}, {"guidance": 1, "sampler": "heun"}):
            assert client.images.generate(prompt="a", extra_body=given).data
        assert client.completions.create(model=own.service.name, prompt="a", temperature=0, max_tokens=1).choices
        for given in ({"sampler": "euler", "eta": 0.5}, {"guidance": 1, "negative": "red"}):
            with pytest.raises(openai.BadRequestError, match="no effect"):
                client.images.generate(prompt="a", extra_body=given)


def test_a_folder_that_guides_edits_by_their_picture_draws_from_words_too() -> None:
    made = tiny.pretrained()
    made = replace(made, generate=replace(made.generate, image_guidance=2.0))
    with running(pipeline=Pipeline(made, slots=6)) as own, own.client() as client:
        assert client.images.generate(prompt="a").data
        assert client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}]).choices
        before = square("blue", (16, 16))
        edited = client.images.edit(image=png(before), prompt="make it red", extra_body={"seed": 4}).data[0]
        expected = own.service.pipeline.edit(before, "make it red", seed=4)[0]
        assert np.abs(opened(edited.b64_json).astype(int) - np.array(expected).astype(int)).max() <= 1


def test_guidance_in_an_interval_of_times(client: openai.OpenAI, server: Running) -> None:
    fields = {"seed": 5, "steps": 4, "guidance": 4.0, "guidance_interval": [0.3, 0.8]}
    made = client.images.generate(model="tiny", prompt="a red circle", size="8x8", extra_body=fields)
    settings: dict[str, Any] = {"size": 8, "seed": 5, "steps": 4, "guidance": 4.0}
    draw = server.service.pipeline.generate_images
    within, everywhere = (
        np.array(draw("a red circle", **settings, **given)[0]).astype(int)
        for given in ({"guidance_interval": (0.3, 0.8)}, {})
    )
    found = opened(made.data[0].b64_json).astype(int)
    assert np.abs(found - within).max() <= 1 < np.abs(found - everywhere).max()
    for wrong in ([0.3], [0.8, 0.3], [0.3, 1.5], "0.3"):
        with pytest.raises(openai.BadRequestError, match="guidance_interval"):
            client.images.generate(model="tiny", prompt="a", extra_body={"guidance_interval": wrong})


def test_drawing(client: openai.OpenAI, server: Running) -> None:
    made = client.images.generate(
        model="tiny", prompt="a red circle", n=2, size="8x4", extra_body={"seed": 5, "steps": 3, "guidance": 1.5}
    )
    expected = server.service.pipeline.generate_images(
        ["a red circle"] * 2, size=(4, 8), seed=[5, 6], steps=3, guidance=1.5
    )
    for item, picture in zip(made.data, expected, strict=True):
        assert np.abs(opened(item.b64_json).astype(int) - np.array(picture).astype(int)).max() <= 1
    assert [item.model_extra["seed"] for item in made.data] == [5, 6]
    assert made.usage.output_tokens == 4
    address = client.images.generate(prompt="a", response_format="url", output_format="webp", size="auto").data[0].url
    assert address.startswith("data:image/webp;base64,")


def test_a_streamed_drawing(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"prompt": "a red circle", "extra_body": {"seed": 5, "steps": 6}}
    whole = client.images.generate(**settings).data[0].b64_json
    *previews, last = client.images.generate(**settings, stream=True, partial_images=2)
    assert [event.type for event in previews] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in previews] == [0, 1]
    assert last.type == "image_generation.completed"
    assert (last.b64_json, last.size) == (whole, "8x8")
    assert previews[0].b64_json != whole
    assert last.usage.total_tokens == last.usage.input_tokens + 4


def test_editing(client: openai.OpenAI, server: Running) -> None:
    before = square("blue", (16, 16))
    mask = PILImage.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 8, 8))  # transparent: drawn anew
    settings: dict[str, Any] = {"image": png(before), "prompt": "make it red", "extra_body": {"seed": 4}}
    free = client.images.edit(**settings).data[0]
    expected = server.service.pipeline.edit(before, "make it red", seed=4)[0]
    assert np.abs(opened(free.b64_json).astype(int) - np.array(expected).astype(int)).max() <= 1
    white = PILImage.new("L", (16, 16))
    white.paste(255, (0, 0, 8, 8))  # as monoformer edit takes it
    same = client.images.edit(**settings, mask=png(white)).data[0]
    *previews, last = client.images.edit(**settings, mask=png(mask), stream=True, partial_images=1)
    assert [event.type for event in [*previews, last]] == ["image_edit.partial_image", "image_edit.completed"]
    after = opened(last.b64_json)
    assert np.array_equal(opened(same.b64_json), after)
    kept = np.array(server.service.pipeline.context_image(before).to_pil())
    assert np.array_equal(after[4:], kept[4:])
    assert np.array_equal(after[:, 4:], kept[:, 4:])
    assert not np.array_equal(after[:4, :4], kept[:4, :4])
    two = client.images.edit(image=[png(before), png(square())], prompt="both", n=2)
    assert len(two.data) == 2
    assert two.usage.input_tokens_details.image_tokens == 8


def test_operation(client: openai.OpenAI, server: Running) -> None:
    import httpx

    client.images.generate(prompt="a")
    with httpx.Client(base_url=server.url) as plain:
        assert plain.get("/health").json() == {"status": "ok"}
        assert plain.get("/ready").status_code == 200
        figures = plain.get("/metrics").text
        document = plain.get("/openapi.json").json()
    values = dict(line.rsplit(" ", 1) for line in figures.splitlines() if not line.startswith("#"))
    assert float(values["monoformer_pictures_total"]) > 0
    assert float(values["monoformer_written_total"]) > 0
    assert float(values['monoformer_answer_seconds_count{route="/v1/images/generations"}']) > 0
    assert float(values['monoformer_first_seconds_count{what="preview"}']) > 0
    assert float(values["monoformer_cached"]) > 0
    assert {"/v1/chat/completions", "/v1/images/edits", "/metrics"} <= document["paths"].keys()
    assert "4XX" in document["paths"]["/v1/completions"]["post"]["responses"]


def test_images_stay_what_they_were(client: openai.OpenAI) -> None:
    pixels = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    from monoformer.config.serve import Limits
    from monoformer.serve.pictures import address, encode, from_address

    again = from_address(address(encode(Image(pixels=pixels))), limits=Limits(), parameter="image")
    assert torch.equal(Image.from_pil(again).pixels, pixels)
