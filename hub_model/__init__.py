"""Run folder in, model repo out: metrics, calibration, figures, card, ONNX export, push and verification."""
