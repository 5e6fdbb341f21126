"""Trains small MobileDiffusion models, one command per stage: `python -m weights_tools.training STAGE`.

Needs the extra `train`; nothing of it is needed to draw. How to use it: docs/training.md.
"""
