"""The papers' learned methods: small networks that read weights and features, trained on families with a known truth.

The Lineage Detector (Neural Lineage, CVPR 2024, §4, S1.2, S2.5; docs/methods.md, *Lineage Detector*):

model.py      the network, one file
inputs.py     a checkpoint → the matrices it is given
examples.py   parents, children and which belongs to which → examples, splits
training.py   examples → a detector, its temperature, its card
evidence.py   a detector's probabilities in an answer of `trace`
blocks.py     the same for each block, in an answer of `trace_layers`
train.py      tables → a trained detector in a folder

The Phylogeny Detector (Neural Phylogeny, ICLR 2025; docs/methods.md, *Phylogeny*):

phylogeny.py  the network
sets.py       its inputs: features of a set of models
decoding.py   scores of pairs → spanning forests
"""
