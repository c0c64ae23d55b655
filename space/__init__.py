"""The Space: a Gradio app over one model repo and one dataset repo of the Hub. It needs only `hub_model.inference`."""
