"""The Space: a Gradio app over one model repo and one dataset repo. Needs only `hub_model.inference` and `hub_model.publish`."""
