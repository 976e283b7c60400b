"""`python -m hf_lineage`."""

from .cli import main

if __name__ == "__main__":
    main()
