"""Small models with weights, in the layouts that the Hub has: is the parent found, and is an unrelated model left alone?

    python tests/benchmarks/coverage/cases.py --write             all: results/coverage-cases.csv
    python tests/benchmarks/coverage/cases.py "layout: .*Whisper"   those whose name shows a pattern; with --write, their
                                                                   rows take the place of those that are there

Each case: two random starts of a model; the child is one of them with 2 % of noise in every tensor. The child is traced
between the two, each in the layout that the case gives it. Needs transformers, timm and, beside (see `case_models.py`),
diffusers and ultralytics; what is not installed is listed as such.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE)]

import case_layouts as layouts  # noqa: E402
from case_models import CLIP, DIFFUSERS, KV, LM, MODELS, TX, VI, Make, Tensors, diffusers_model  # noqa: E402
from case_models import transformers_model as of  # noqa: E402

import hf_lineage as hl  # noqa: E402
from hf_lineage.errors import LineageError  # noqa: E402

TABLE = HERE.parent / "results" / "coverage-cases.csv"
NOISE = 0.02
ALPHA = 1e-3
COLUMNS = (
    "group", "name", "outcome", "verdict", "relation", "relation_unrelated", "p_parent", "p_unrelated", "layers",
    "why", "expected", "parameters",
)  # fmt: skip
Writer = Callable[[Path, Tensors], object]
Layout = layouts.Layout


def save(folder: Path, model: Tensors, file: str = "model.safetensors") -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in model.items()}, folder / file)


@dataclass(frozen=True)
class Case:
    """make: the model from a seed. child, parent: the layout of each; the unrelated model has the parent's.
    unrelated: of (parent's model, another start) what the unrelated model is. write, write_parent: the files.

    expected: "found"; "alone": no parent is offered, and the unrelated one, which shares a part, is no parent;
    "refused": an error that says what to do.
    """

    make: Make
    child: Layout = layouts.same
    parent: Layout = layouts.same
    unrelated: Callable[[Tensors, Tensors], Tensors] = field(default=lambda model, other: other)
    write: Writer = save
    write_parent: Writer = save
    allow_pickle: bool = False
    expected: str = "found"


def tuned(model: Tensors) -> Tensors:
    """Noise of 2 % of its deviation in every tensor of floats."""
    generator = torch.Generator().manual_seed(7)
    found: Tensors = {}
    for name, tensor in model.items():
        found[name] = tensor.clone()
        if tensor.is_floating_point() and tensor.numel():
            values = tensor.float()
            size = NOISE * (values.std() if values.numel() > 1 else values.abs().mean()) + 1e-5
            found[name] = (values + size * torch.randn(values.shape, generator=generator)).to(tensor.dtype)
    return found


# ---- the models of the layouts

llama = of("LlamaForCausalLM", "llama", **KV)
even = of("LlamaForCausalLM", "llama", **LM, num_key_value_heads=4)  # as many keys as queries
wide = of("LlamaForCausalLM", "llama", **{**KV, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 400})
bert = of("BertForMaskedLM", "bert", **LM)
vit = of("ViTForImageClassification", "vit", num_labels=10, **VI)
clip = of("CLIPModel", "clip", **CLIP)
t5 = MODELS["transformers"]["T5"]
llava = MODELS["transformers"]["LLaVA"]
gemma3 = MODELS["transformers"]["Gemma 3 multimodal"]
qwen2_vl = MODELS["transformers"]["Qwen2-VL"]
gpt_oss = MODELS["transformers"]["gpt-oss, bf16 (E, in, out interleaved)"]
swin = MODELS["transformers"]["Swin"]
flux = MODELS["diffusers"]["FluxTransformer2DModel"]
UNET = {**DIFFUSERS["UNet2DConditionModel"][1], "cross_attention_dim": 64}


def stable_diffusion(seed: int) -> Tensors:
    unet = diffusers_model("UNet2DConditionModel", **UNET)(seed)
    text = of("CLIPTextModel", "clip_text_model", **TX, max_position_embeddings=16)(seed)
    found = {f"unet.{name}": tensor for name, tensor in unet.items()}
    return found | {f"text.{name}": tensor for name, tensor in text.items() if "position_ids" not in name}


# ---- files


def sharded(folder: Path, model: Tensors, index: bool = True) -> None:
    names = sorted(model)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in {*files.values()}:
        save(folder, {name: model[name] for name in names if files[name] == file}, file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def pickled(name: str, wrap: Callable[[Tensors], Any] = lambda model: model) -> Writer:
    def write(folder: Path, model: Tensors) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(wrap(model), folder / name)

    return write


def nothing_but(name: str, content: bytes = b"x") -> Writer:
    def write(folder: Path, model: Tensors) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def gguf(folder: Path, model: Tensors) -> None:
    from gguf_files import write_gguf

    write_gguf(folder / "model-Q8_0.gguf", model, "Q8_0")


def pipeline(folder: Path, model: Tensors) -> None:
    file = "diffusion_pytorch_model.safetensors"
    save(folder / "unet", layouts.only("unet.")(model), file)
    save(folder / "text_encoder", layouts.only("text.")(model))
    save(folder / "vae", {"encoder.conv_in.weight": torch.randn(32, 3, 3, 3)}, file)
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )


def beside(*others: tuple[str, Layout]) -> Writer:
    """The model in its usual file, and more files."""

    def write(folder: Path, model: Tensors) -> None:
        save(folder, model)
        for name, layout in others:
            save(folder, layout(model), name)

    return write


half = layouts.cast(torch.float16)
bf16 = layouts.cast(torch.bfloat16)
dense = layouts.with_tensors(lambda model: {}, linear__weight=torch.ones(32, 64))
autoencoder = layouts.with_tensors(lambda model: {}, decoder__w=torch.ones(4, 4))
parts_of_clip = r"^(text_|logit|visual_projection)"

PREFIXES = {
    "torch.compile: _orig_mod.": Case(llama, layouts.under("_orig_mod.")),
    "DDP: module.": Case(llama, layouts.under("module.")),
    "DDP and compile: module._orig_mod.": Case(llama, layouts.under("module._orig_mod.")),
    "PEFT, merged and wrapped: base_model.model.": Case(llama, layouts.under("base_model.model.")),
    "PEFT with base_layer and factors": Case(llama, layouts.with_lora),
    "Lightning: model.": Case(llama, layouts.under("model.")),
    "reward model: score, no lm_head": Case(llama, layouts.reward_model),
    "BERT classifier from its masked model": Case(bert, layouts.new_classifier),
    "BERT with gamma and beta": Case(bert, parent=layouts.renamed((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))),
    "sentence-transformers: no bert.": Case(bert, layouts.renamed((r"^bert\.", ""), drop="^cls")),
    "encoder.model.": Case(bert, layouts.under("encoder.model.")),
    "text_encoder.": Case(bert, layouts.under("text_encoder.")),
    "net.": Case(vit, layouts.under("net.")),
    "policy.": Case(llama, layouts.under("policy.")),
    "8 more tokens": Case(llama, layouts.more_tokens),
    "2 of 3 layers": Case(llama, layouts.renamed(drop=r"layers\.2\.")),
    "2 of 3 layers, net.": Case(llama, layouts.then(layouts.renamed(drop=r"layers\.2\."), layouts.under("net."))),
    "8 more tokens, net.": Case(llama, layouts.then(layouts.more_tokens, layouts.under("net."))),
}  # fmt: skip
PACKED = {
    "fp16": Case(wide, half),
    "bf16": Case(wide, bf16),
    **{f"child in {layout}": Case(wide, layouts.packed(layout)) for layout in (
        "nf4", "nf4 nested", "llm int8", "fp8 block", "fp8", "fp8 channel", "gptq", "awq", "compressed-tensors", "nvfp4", "mxfp4", "hqq", "mlx", "torchao")},
    **{f"both in {layout}": Case(wide, layouts.packed(layout), layouts.packed(layout)) for layout in ("gptq", "awq", "fp8 block")},
    **{f"child in bf16, parent in {layout}": Case(wide, bf16, layouts.packed(layout)) for layout in ("nf4 nested", "fp8 block")},
    "gpt-oss: parent in MXFP4": Case(gpt_oss, bf16, layouts.openai_mxfp4),
    "gpt-oss: both in MXFP4": Case(gpt_oss, layouts.openai_mxfp4, layouts.openai_mxfp4),
}  # fmt: skip
FILES = {
    "GGUF child": Case(wide, write=gguf),
    "GGUF parent": Case(wide, write_parent=gguf),
    "pytorch_model.bin": Case(llama, write=pickled("pytorch_model.bin"), allow_pickle=True),
    "pytorch_model.bin, not allowed": Case(llama, write=pickled("pytorch_model.bin"), expected="refused"),
    "pytorch_model.bin parent": Case(llama, write_parent=pickled("pytorch_model.bin"), allow_pickle=True),
    "best.pt with a module in it": Case(llama, write=pickled("best.pt", lambda m: {"model": torch.nn.Linear(4, 4), "ema": m}), allow_pickle=True, expected="refused"),
    "Lightning last.ckpt": Case(llama, write=pickled("last.ckpt", lambda m: {"state_dict": m, "hyper_parameters": {"lr": 1e-3}}), allow_pickle=True),
    "ckpt.pt with the optimiser": Case(llama, write=pickled("ckpt.pt", lambda m: {"model": m, "optimizer": {"state": {}}}), allow_pickle=True),
    "no ONNX in model.onnx": Case(llama, write=nothing_but("onnx/model.onnx"), expected="refused"),
    "tf_model.h5": Case(llama, write=nothing_but("tf_model.h5"), expected="refused"),
    "flax_model.msgpack": Case(llama, write=nothing_but("flax_model.msgpack"), expected="refused"),
    "nothing but config.json": Case(llama, write=nothing_but("config.json", b"{}"), expected="refused"),
    "0_Transformer/model.safetensors": Case(bert, write=lambda folder, m: save(folder, m, "0_Transformer/model.safetensors"), expected="refused"),
    "2_Dense/model.safetensors beside": Case(bert, write=beside(("2_Dense/model.safetensors", dense))),
    "diffusers pipeline": Case(stable_diffusion, write=pipeline, write_parent=pipeline),
    "flux1-dev and ae": Case(llama, write=lambda folder, m: (save(folder, m, "flux1-dev.safetensors"), save(folder, autoencoder(m), "ae.safetensors")), expected="refused"),
    "model.fp16.safetensors beside": Case(llama, write=beside(("model.fp16.safetensors", half))),
    "consolidated beside shards": Case(llama, write=lambda folder, m: (sharded(folder, m), save(folder, m, "consolidated.safetensors"))),
    "consolidated alone": Case(llama, write=lambda folder, m: save(folder, m, "consolidated.safetensors")),
    "shards": Case(llama, write=sharded),
    "shards without an index": Case(llama, write=lambda folder, m: sharded(folder, m, index=False)),
}  # fmt: skip
LAYOUTS = {
    "ViT: transformers, timm": Case(vit, layouts.vit_of_timm),
    "DINOv2: transformers, its authors": Case(MODELS["transformers"]["DINOv2"], layouts.vit_of_timm),
    "CLIP: transformers, OpenAI": Case(clip, layouts.clip_of_openai),
    "CLIP: transformers, open_clip": Case(clip, lambda m: layouts.clip_of_openai(m, "text.")),
    "CLIP and its vision tower": Case(clip, layouts.renamed(drop=parts_of_clip)),
    "CLIP and its text tower": Case(clip, layouts.renamed(drop=r"^(vision_|logit|visual_projection|text_projection)")),
    "CLIP and LLaVA's tower": Case(clip, layouts.renamed((r"^", "model.vision_tower."), drop=parts_of_clip)),
    "Llama: transformers, Meta": Case(llama, layouts.llama_of_meta),
    "Llama: Meta, transformers": Case(llama, parent=layouts.llama_of_meta),
    "InternLM2's, as a Llama": Case(llama, parent=layouts.llama_of_internlm),
    "Qwen's, as a Llama": Case(even, parent=layouts.llama_of_qwen),
    "a Llama, as Qwen's": Case(even, layouts.llama_of_qwen),
    "ChatGLM's, as a Llama": Case(even, parent=layouts.llama_of_chatglm),
    "Phi-3, as a Llama": Case(MODELS["transformers"]["Phi-3 (qkv_proj, gate_up_proj)"], layouts.phi_as_llama),
    "Mixtral: experts one by one, in one": Case(MODELS["transformers"]["Mixtral"], layouts.experts_in_one),
    "Whisper: transformers, OpenAI": Case(MODELS["transformers"]["Whisper"], layouts.whisper_of_openai),
    "GPT-2: Conv1D, Linear": Case(MODELS["transformers"]["GPT-2 (Conv1D)"], layouts.gpt2_as_linear),
    "GPT-2: no transformer.": Case(MODELS["transformers"]["GPT-2 (Conv1D)"], layouts.renamed((r"^transformer\.", ""))),
    "GPT-NeoX: another prefix": Case(MODELS["transformers"]["GPT-NeoX / Pythia"], layouts.renamed((r"^gpt_neox\.", "net.decoder."))),
    "Falcon: another prefix": Case(MODELS["transformers"]["Falcon-7B (fused, multi-query)"], layouts.under("net.")),
    "BLOOM: another prefix": Case(MODELS["transformers"]["BLOOM"], layouts.under("net.")),
    "MPT: another prefix": Case(MODELS["transformers"]["MPT (Wqkv)"], layouts.under("net.")),
    "Swin: transformers, timm": Case(swin, layouts.swin_of_timm),
    "ConvNeXt: transformers, timm": Case(MODELS["transformers"]["ConvNeXt"], layouts.convnext_of_timm),
    "ResNet: transformers, timm": Case(MODELS["transformers"]["ResNet-18-like (basic)"], layouts.resnet_of_timm),
    "ResNet: backbone.body.": Case(MODELS["transformers"]["ResNet-18-like (basic)"], layouts.then(layouts.resnet_of_timm, layouts.under("backbone.body.")), layouts.resnet_of_timm),
    "ResNet: model.backbone.conv_encoder.model.": Case(MODELS["transformers"]["ResNet-18-like (basic)"], layouts.then(layouts.resnet_of_timm, layouts.under("model.backbone.conv_encoder.model.")), layouts.resnet_of_timm),
    "Gemma 3 and its language model": Case(gemma3, layouts.language_of),
    "language model and Gemma 3": Case(gemma3, parent=layouts.language_of),
    "Qwen2-VL: model.language_model.": Case(qwen2_vl, layouts.renamed((r"^visual\.", "model.visual."), (r"^model\.(layers|embed_tokens|norm)", r"model.language_model.\1"))),
    "Qwen2 and Qwen2-VL": Case(qwen2_vl, parent=layouts.renamed(drop="visual")),
    "Llama and LLaVA": Case(llava, parent=layouts.language_of),
    "LLaVA: transformers, its authors": Case(llava, layouts.llava_of_its_authors),
    "dense, upcycled": Case(llama, layouts.upcycled),
    "Stable Diffusion: diffusers, one file": Case(stable_diffusion, layouts.diffusion_of_ldm, layouts.only("unet.")),
    "Stable Diffusion: one file, both": Case(stable_diffusion, layouts.diffusion_of_ldm, layouts.diffusion_of_ldm),
    "Flux: diffusers, one file": Case(flux, layouts.flux_of_bfl),
    "Flux: one file, diffusers": Case(flux, parent=layouts.flux_of_bfl),
    "Flux: one file, ComfyUI": Case(flux, layouts.then(layouts.flux_of_bfl, layouts.under("model.diffusion_model.")), layouts.flux_of_bfl),
    "Mamba: backbone.embeddings, embedding": Case(MODELS["transformers"]["Mamba"], layouts.renamed((r"embeddings\.", "embedding."))),
    "ESM: no esm.": Case(MODELS["transformers"]["ESM-2"], layouts.renamed((r"^esm\.", ""), drop="^lm_head")),
    "wav2vec2: weight_g, parametrizations": Case(MODELS["transformers"]["wav2vec2"], parent=layouts.renamed((r"parametrizations\.weight\.original0", "weight_g"), (r"parametrizations\.weight\.original1", "weight_v"))),
    "T5 and its encoder": Case(t5, layouts.renamed(drop=r"^decoder|lm_head")),
    "ViT without a head": Case(vit, layouts.then(layouts.vit_of_timm, layouts.renamed(drop="^head")), layouts.vit_of_timm),
    "ViT of another input": Case(vit, layouts.then(layouts.vit_of_timm, layouts.new_positions), layouts.vit_of_timm),
}  # fmt: skip
PARTS = {
    "LLaVA: the tower is shared": Case(llava, unrelated=layouts.sharing("vision_tower")),
    "Stable Diffusion: the text encoder is shared": Case(stable_diffusion, layouts.diffusion_of_ldm, layouts.diffusion_of_ldm, layouts.sharing(r"^text\.")),
    "LLaVA: nothing but the tower": Case(llava, unrelated=layouts.sharing("vision_tower"), expected="alone"),
    "Stable Diffusion: nothing but the text encoder": Case(stable_diffusion, layouts.diffusion_of_ldm, layouts.diffusion_of_ldm, layouts.sharing(r"^text\."), expected="alone"),
    "Gemma 3: nothing but the tower": Case(gemma3, unrelated=layouts.sharing("vision_tower"), expected="alone"),
}  # fmt: skip
CASES: dict[str, dict[str, Case]] = {
    **{group: {name: Case(make) for name, make in made.items()} for group, made in MODELS.items()},
    "prefix": PREFIXES,
    "packed": PACKED,
    "files": FILES,
    "layout": LAYOUTS,
    "part": PARTS,
}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Write the models of a case, trace the child, and say whether the answer is right."""
    mine, other = case.make(1), case.make(2)
    case.write(folder / "child", case.child(tuned(mine)))
    case.write_parent(folder / "parent", case.parent(mine))
    case.write_parent(folder / "unrelated", case.parent(case.unrelated(mine, other)))
    names = ["unrelated"] if case.expected == "alone" else ["parent", "unrelated"]
    row: dict[str, Any] = {"expected": case.expected, "parameters": sum(t.numel() for t in mine.values())}
    try:
        found = hl.trace(folder / "child", [folder / name for name in names], allow_pickle=case.allow_pickle)
    except LineageError as error:
        first = str(error).splitlines()[0].replace(str(folder), "")
        return row | {"outcome": "ok" if case.expected == "refused" else "refused", "why": first}
    by = {Path(c.ref).name: c for c in found.candidates}
    parent, unrelated = by.get("parent"), by["unrelated"]
    told = parent or unrelated
    weights = told.evidence.get("weights")
    test = weights.to_dict()["test"] if weights else None
    return row | {
        "verdict": found.verdict, "relation": parent and parent.relation, "relation_unrelated": unrelated.relation,
        "p_parent": parent and parent.p_value, "p_unrelated": unrelated.p_value, "layers": len(test["layers"]) if test else 0,
        "outcome": _outcome(found, case), "why": " / ".join(map(str, told.reasons))[:200].replace(str(folder), ""),
    }  # fmt: skip


def _outcome(found: Any, case: Case) -> str:
    by = {Path(c.ref).name: c for c in found.candidates}
    unrelated = by["unrelated"]
    shares = case.unrelated is not Case.__dataclass_fields__["unrelated"].default
    if found.parent and Path(found.parent).name == "unrelated":
        return "wrong: unrelated is the parent"
    if shares and unrelated.relation != "shared_part":
        return f"wrong: the shared part is called {unrelated.relation}"
    if case.expected == "refused":
        return "not refused"
    if case.expected == "alone":
        return "ok"
    if not shares and unrelated.p_value is not None and unrelated.p_value <= ALPHA:
        return "wrong: unrelated is related"
    parent = by["parent"]
    if parent.status != "compared":
        return parent.status.replace("_", " ")
    if parent.relation == "none":
        return "wrong: none"
    related = parent.p_value is not None and parent.p_value <= ALPHA
    return "ok" if related and found.verdict in ("parent", "common_origin", "identical") else found.verdict


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, begin = [], time.process_time()
    for group, cases in CASES.items():
        for name, case in cases.items():
            if not re.search(chosen.pattern, f"{group}: {name}"):
                continue
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                try:
                    row = measure(case, Path(folder))
                except ImportError as error:
                    row = {"outcome": "not installed", "why": str(error)}
            rows.append({"group": group, "name": name, **row})
            p = [row.get(key) for key in ("p_parent", "p_unrelated")]
            print(f"{row['outcome']:24} {group}: {name}  p={p} {row.get('relation')} {row.get('why', '')}", flush=True)
            if chosen.write:
                record(rows[-1])
    print(Counter(row["outcome"] for row in rows), f"{time.process_time() - begin:.0f} s of processor time")


def record(row: dict[str, Any]) -> None:
    """Put a row into the table, in the place of one of the same case."""
    known = {(old["group"], old["name"]): old for old in read_table()} | {(row["group"], row["name"]): row}
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(known[group, name] for group in CASES for name in CASES[group] if (group, name) in known)


def read_table() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


if __name__ == "__main__":
    main()
