"""Predicts what a run needs before it has a GPU: parameters, FLOPs, memory, communication, time, the best layouts.

Pure mathematics: imports no megatron and builds no model. Its formulas are tested against real modules.
"""
