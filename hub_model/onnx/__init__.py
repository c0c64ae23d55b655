"""ONNX export of a timm model, and the channel layout that makes it fast on a CPU."""
