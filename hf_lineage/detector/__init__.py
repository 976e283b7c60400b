"""The papers' learned methods: small networks that read weights and features, trained on families with a known truth.

The Lineage Detector (Neural Lineage, CVPR 2024, §4, S1.2, S2.5; METHODS §2):

model.py      the network, one file
inputs.py     a checkpoint → the matrices it is given
examples.py   parents, children and who is whose → examples, splits
training.py   examples → a detector, its temperature, its card
evidence.py   a detector's word in an answer of `trace` and `trace_layers`

The Phylogeny Detector (Neural Phylogeny, ICLR 2025; METHODS §4):

phylogeny.py  the network
sets.py       what it sees of a set of models
decoding.py   scores of pairs → a forest
"""
