"""Headers of real architectures, built on the meta device: every model type of transformers, every name of timm up to
100 M parameters, every model of diffusers that its default configuration builds.

Each is a generator of (name, shapes or None, why there are none). diffusers is no dependency of this package: install
it beside (`pip install --no-deps --target FOLDER diffusers`, PYTHONPATH=FOLDER).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

Shapes = dict[str, tuple[str, tuple[int, ...]]]
Header = tuple[str, Shapes | None, str]
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32"}
LARGEST = 100_000_000  # parameters of a name of timm; above, it is another size of one that is measured
MOST_EXPERTS = 16  # names and shapes of 16 experts say as much as those of 256
HEADS = (  # of model types with several, the first
    "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM IMAGE_TEXT_TO_TEXT MULTIMODAL_LM MASKED_LM SPEECH_SEQ_2_SEQ CTC RNNT TDT "
    "IMAGE_CLASSIFICATION ZERO_SHOT_IMAGE_CLASSIFICATION OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION "
    "SEMANTIC_SEGMENTATION UNIVERSAL_SEGMENTATION INSTANCE_SEGMENTATION IMAGE_SEGMENTATION MASK_GENERATION "
    "DEPTH_ESTIMATION VIDEO_CLASSIFICATION AUDIO_CLASSIFICATION TEXT_TO_SPECTROGRAM TEXT_TO_WAVEFORM PRETRAINING "
    "VISUAL_QUESTION_ANSWERING DOCUMENT_QUESTION_ANSWERING TABLE_QUESTION_ANSWERING QUESTION_ANSWERING "
    "SEQUENCE_CLASSIFICATION TOKEN_CLASSIFICATION IMAGE_TO_IMAGE KEYPOINT_DETECTION KEYPOINT_MATCHING POSE_ESTIMATION "
    "TIME_SERIES_PREDICTION RETRIEVAL MASKED_IMAGE_MODELING AUDIO_XVECTOR TEXT_ENCODING BACKBONE IMAGE_MATTING "
    "NORMAL_ESTIMATION POINTMAP_ESTIMATION TEXT_RECOGNITION TABLE_RECOGNITION AUDIO_TOKENIZATION DECISION "
    "CAUSAL_IMAGE_MODELING"
)

# sizes that are not the default ones of their class
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "SD1.5 unet": ("UNet2DConditionModel", {"cross_attention_dim": 768, "attention_head_dim": 8}),
    "SD2 unet": (
        "UNet2DConditionModel",
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    ),
    "SDXL unet": (
        "UNet2DConditionModel",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
    ),
    "SD vae": (
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
        },
    ),
    "SD1.5 ControlNet": ("ControlNetModel", {"cross_attention_dim": 768}),
    "Flux.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "SD3-medium": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
            "sample_size": 128,
        },
    ),
    "PixArt-alpha": ("PixArtTransformer2DModel", {"sample_size": 128, "num_layers": 28, "caption_channels": 4096}),
    "DiT-XL/2": (
        "DiTTransformer2DModel",
        {
            "num_layers": 28,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 32,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_zero",
        },
    ),
    "Wan2.1-1.3B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
    ),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "HunyuanDiT": (
        "HunyuanDiT2DModel",
        {
            "num_layers": 40,
            "num_attention_heads": 16,
            "attention_head_dim": 88,
            "in_channels": 4,
            "hidden_size": 1408,
            "cross_attention_dim": 1024,
        },
    ),
    "CogVideoX-2b": ("CogVideoXTransformer3DModel", {}),
    "LTX": ("LTXVideoTransformer3DModel", {}),
    "Sana": ("SanaTransformer2DModel", {}),
    "DDPM unet": ("UNet2DModel", {}),
    "Kandinsky prior": ("PriorTransformer", {}),
    "Mochi": ("MochiTransformer3DModel", {}),
    "Lumina2": ("Lumina2Transformer2DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "AuraFlow": ("AuraFlowTransformer2DModel", {}),
    "Chroma": ("ChromaTransformer2DModel", {}),
    "Flux2": ("Flux2Transformer2DModel", {}),
    "HiDream": ("HiDreamImageTransformer2DModel", {}),
    "StableCascade": ("StableCascadeUNet", {}),
    "AutoencoderTiny": ("AutoencoderTiny", {}),
    "AutoencoderKLWan": ("AutoencoderKLWan", {}),
}


def shapes_of(state: dict[str, Any]) -> Shapes:
    tensors = {name: value for name, value in state.items() if hasattr(value, "shape")}
    return {n: (DTYPES.get(str(t.dtype).removeprefix("torch."), "F32"), tuple(t.shape)) for n, t in tensors.items()}


def _no_values() -> None:
    """Starts are not drawn: only names and shapes are wanted."""
    for name in dir(torch.nn.init):
        if name.endswith("_") and not name.startswith("_"):
            setattr(torch.nn.init, name, lambda *given, **named: given[0] if given else named.get("tensor"))


def of_timm() -> Iterator[Header]:
    _no_values()
    import timm

    for name in timm.list_models():
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception as error:  # a model that cannot be built is a row of the table
            yield name, None, f"{type(error).__name__}: {error}"[:100]
            continue
        large = sum(p.numel() for p in model.parameters()) > LARGEST
        yield (name, None, "larger than 100 M") if large else (name, shapes_of(model.state_dict()), "")


def of_diffusers() -> Iterator[Header]:
    import diffusers  # type: ignore[import-not-found]

    asked = [(name, *known) for name, known in KNOWN.items()]
    named = {kind for kind, _ in KNOWN.values()} | {"ModelMixin"}
    for kind in sorted({*dir(diffusers)} - named):
        with contextlib.suppress(Exception):  # of what needs a library that is not here
            made = getattr(diffusers, kind)
            if inspect.isclass(made) and issubclass(made, diffusers.ModelMixin):
                asked.append((kind, kind, {}))
    for name, kind, settings in asked:
        try:
            with torch.device("meta"):
                model = getattr(diffusers, kind)(**settings)
        except Exception as error:
            yield name, None, f"{type(error).__name__}: {error}"[:100]
            continue
        yield name, shapes_of(model.state_dict()), ""


def of_transformers() -> Iterator[Header]:
    import transformers
    from transformers import AutoConfig
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING", None) for head in HEADS.split()]
    tables = [table._model_mapping for table in [*tables, modeling_auto.MODEL_MAPPING] if table is not None]
    for kind in CONFIG_MAPPING_NAMES:
        found = next((table[kind] for table in tables if kind in table), None)
        if found is None:
            continue  # the configuration of a part: no class of its own
        try:
            config = AutoConfig.for_model(kind)
            _cap_experts(config)
            made = getattr(transformers, found[0] if isinstance(found, (tuple, list)) else found)
            with torch.device("meta"):
                model = made._from_config(config) if hasattr(made, "_from_config") else made(config)
            state = remove_tied_weights_from_state_dict(model.state_dict(), model)
            with contextlib.suppress(Exception):  # as it is saved
                state = revert_weight_conversion(model, dict(state))
        except Exception as error:
            yield kind, None, f"{type(error).__name__}: {error}"[:100]
            continue
        yield kind, shapes_of(state), ""


def _cap_experts(config: Any, depth: int = 0) -> None:
    for key, value in [*vars(config).items()]:
        if isinstance(value, int) and value > MOST_EXPERTS and "experts" in key and "per" not in key:
            setattr(config, key, MOST_EXPERTS)
        elif depth < 3 and hasattr(value, "model_type"):
            _cap_experts(value, depth + 1)


LIBRARIES = {"transformers": of_transformers, "timm": of_timm, "diffusers": of_diffusers}
