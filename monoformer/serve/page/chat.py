"""The tab in which words and pictures go both ways."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monoformer.generate.session import Request, Wanted
from monoformer.serve.page.desk import Desk, Pace, Results, friendly
from monoformer.serve.page.examples import Examples
from monoformer.serve.page.pictures import enlarged, png_bytes
from monoformer.serve.page.talk import Answer, Memory, read_talk
from monoformer.serve.page.wishes import read_picture

MEMORIES: dict[str, Memory] = {
    "the whole talk": "talk",
    "the last picture, and this message": "picture",
    "this message alone": "nothing",
}

ANSWERS: dict[str, Wanted] = {"as the model decides": "any", "in words": "text", "with a picture": "image"}


class Chat:
    """Answers messages."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self, examples: Examples, folder: Path) -> None:
        """Lay the tab out; pictures of the examples become files of `folder`."""
        import gradio as gr

        memory = next(said for said, kind in MEMORIES.items() if kind == ("talk" if examples.talks else "picture"))
        defaults, messages = self.desk.defaults, write_messages(examples, folder)
        gr.ChatInterface(
            friendly(self.answer),
            multimodal=True,
            chatbot=gr.Chatbot(height=600, show_label=False, buttons=["copy"], placeholder=GREETING, elem_id="chat"),
            textbox=gr.MultimodalTextbox(
                placeholder="Write something, or show a picture",
                file_types=["image"],
                file_count="multiple",
                sources=["upload"],
                stop_btn=True,
                show_label=False,
                elem_id="chat-message",
            ),
            additional_inputs=[
                gr.Radio(list(ANSWERS), value="as the model decides", label="Answer", render=False),
                gr.Radio(list(MEMORIES), value=memory, label="Read", info=MEMORY_HELP, render=False),
                gr.Slider(0, 1.5, value=defaults.temperature, step=0.05, label="Temperature of words", render=False),
                gr.Number(defaults.seed, precision=0, minimum=0, label="Seed", render=False),
            ],
            additional_inputs_accordion=gr.Accordion("How to answer", open=False, render=False),
            examples=[[message] for message in messages] or None,
            example_labels=[message["text"] or "(what is this?)" for message in messages] or None,
            title=None,
            analytics_enabled=False,
            api_visibility="private",
            concurrency_limit=None,
            fill_height=False,
        )

    async def answer(
        self,
        message: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        want: str,
        memory: str,
        temperature: float,
        seed: int,
    ) -> Results:
        """The assistant's messages as they grow."""
        if len(history) >= self.desk.limits.messages:
            raise ValueError(f"this server takes {self.desk.limits.messages} messages at most; begin a new talk")
        document = read_talk(
            history, message, memory=MEMORIES[memory], reader=lambda picture: read_picture(self.desk, picture)
        )
        turn = sum(said["role"] == "assistant" for said in history)  # the same words twice are not the same picture
        settings = self.desk.settings(temperature=temperature, seed=int(seed) + turn)
        wanted = ANSWERS[want]
        request = Request(document=document, want=wanted, settings=settings, previews=0 if wanted == "text" else 1)
        with TemporaryDirectory(prefix="monoformer-") as folder:
            answer, pace = Answer(Path(folder)), Pace()
            async for event in self.desk.follow(request):
                answer.take(event)
                if event.kind != "progress" or pace.is_due():
                    yield answer.messages()


MEMORY_HELP = "a model that was trained on single questions and answers loses its way in a long talk"

GREETING = "**Ask for a picture, show one, or just talk.**\n\nOr click one of these:"


def write_messages(examples: Examples, folder: Path) -> list[dict[str, Any]]:
    """Examples as messages, one or two of each kind; their pictures become files of `folder`."""
    messages: list[dict[str, Any]] = [{"text": prompt, "files": []} for prompt in examples.prompts[:2]]
    shown = [(image, "") for image in examples.described[:1]]
    for at, (image, text) in enumerate([*shown, *examples.asked[:1], *examples.edits[:2]]):
        path = folder / f"example-{at}.png"
        path.write_bytes(png_bytes(enlarged(image.to_pil(), side=256)))
        messages.append({"text": text, "files": [str(path)]})
    return messages
