"""Recipes through the real mergekit, in an environment of its own: its pins are not ours.

PYTHON_OF_MERGEKIT tests/benchmarks/run_mergekit.py < jobs     each line: a YAML, a tab, the folder of the result
"""

from __future__ import annotations

import sys

import yaml


def main() -> None:
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=7)
    for line in sys.stdin:
        recipe, out = line.rstrip("\n").split("\t")
        try:
            with open(recipe, encoding="utf-8") as file:
                run_merge(MergeConfiguration.model_validate(yaml.safe_load(file)), out, options)
            print(f"made\t{out}", flush=True)
        except Exception as error:  # whatever a recipe makes it raise is the answer
            print(f"{type(error).__name__}: {str(error)[:200]!r}\t{out}", flush=True)


if __name__ == "__main__":
    main()
