"""Experiments with in-training compression of state space models, on the public API of `hsv` and `hsv_torch`.

``python -m paper_repro --help`` lists the commands.
"""
