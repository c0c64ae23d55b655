"""The Space: a self-contained Gradio app over one model repo and one dataset repo of the Hub.

In a Space these files lie at the top of the repo and `app.py` makes them the package `space`; here they are
that package already. Nothing is imported from the other folders of the project. `hub_model.inference.classifier` is the
public entry.
"""
