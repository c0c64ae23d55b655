"""The plain one-function Gradio app that the Space is measured against: what a model page's few lines of example code give.

`python -m tests.space.plain_app MODEL_FOLDER PORT`: timm's model and transform, one picture in, labels out.
"""

from __future__ import annotations

import sys

import gradio as gr
import timm
import torch
from PIL import Image


def main() -> None:
    folder, port = sys.argv[1], int(sys.argv[2])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    names = model.pretrained_cfg.get("label_names") or model.label_names

    def predict(image: Image.Image) -> dict[str, float]:
        with torch.inference_mode():
            probabilities = model(transform(image.convert("RGB"))[None]).softmax(1)[0]
        return dict(zip(names, probabilities.tolist(), strict=True))

    app = gr.Interface(predict, gr.Image(type="pil"), gr.Label(), api_name="predict")
    app.launch(server_name="127.0.0.1", server_port=port, quiet=True)


if __name__ == "__main__":
    main()
