"""Controls that several tabs have: how a picture is sampled."""

from typing import Any

from monoformer.serve.page.desk import Desk

LARGEST_SEED = 2**31 - 1


def add_sampling(desk: Desk) -> tuple[Any, Any, Any]:
    """Steps, guidance and seed, as the model's own settings have them."""
    import gradio as gr

    defaults = desk.defaults
    steps = gr.Slider(1, desk.limits.steps, value=defaults.steps, step=1, label="Denoising steps")
    guidance = gr.Slider(
        1, 10, value=defaults.guidance, step=0.05, label="Guidance", info="how closely to follow the words"
    )
    seed = gr.Number(defaults.seed, precision=0, minimum=0, maximum=LARGEST_SEED, label="Seed")
    return steps, guidance, seed


def add_after(tab: str, *, edits: str) -> tuple[Any, Any, Any, Any, Any]:
    """What can be done with a picture that is there: a hidden row, its three buttons, and what the model says."""
    import gradio as gr

    with gr.Row(visible=False) as row:
        download = gr.DownloadButton("Download", min_width=80, elem_id=f"{tab}-download")
        edit = gr.Button(edits, min_width=80, elem_id=f"{tab}-further")
        describe = gr.Button("Describe", min_width=80, elem_id=f"{tab}-describe")
    said = gr.Textbox(label="What the model says it is", visible=False, elem_id=f"{tab}-said")
    return row, download, edit, describe, said
