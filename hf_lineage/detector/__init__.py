"""Learned evidence: the Lineage Detector (Neural Lineage, CVPR 2024, §4, S1.2, S2.5; METHODS §2).

model.py      the network, one file
inputs.py     a checkpoint → the matrices it is given
examples.py   parents, children and who is whose → examples, splits
training.py   examples → a detector, its temperature, its card
evidence.py   a detector's word in an answer of `trace` and `trace_layers`
"""
