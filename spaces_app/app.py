"""The Gradio Space of hf_lineage: `python spaces_app/app.py`, or as a Space on the Hub (README.md beside this file).

The processes of questions import this file (jobs.py): what they do not need is imported below.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


def main() -> None:
    """Serve the page."""
    # before anything that reads them is imported: a visitor's question is never asked with this machine's own login,
    # and never finds what was downloaded with it
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    with tempfile.TemporaryDirectory(prefix="hf-lineage-") as empty:
        os.environ["HF_HUB_CACHE"] = empty
        try:
            import gradio  # noqa: F401
        except ImportError:
            sys.exit("Expected gradio for the page, found none: pip install 'hf_lineage[space]'.")
        import jobs
        import layout

        jobs.get_ready()
        layout.launch(layout.build())


if __name__ == "__main__":
    main()
