"""Inference: images in, calibrated answers out. Depends on nothing else of the project; the Space repo carries a copy."""
