"""The operator: observe a Finetune and its children, decide with values, act at the edge.

Start reading in `reconcile.py`, then `decide.py`.
"""
