"""Networks from a config, without running foreign code; the only home of timm and transformers.

    build(checkpoint)             a module of a library's class, or of `like`, without weights
    weights(network, checkpoint)  tensors by the module's names, for `torch.func.functional_call`
    taps(network, names)          where its features may be taken

A config is foreign text. It may choose a class of the two libraries and its sizes, nothing else: no code, no
download (sockets are refused while it is read), no more than a few times the elements its own checkpoint holds.
"""

from __future__ import annotations

import copy
import difflib
import importlib.metadata
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..answers.refs import printable
from ..architecture.conventions import canonical_names
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.texts import json_data
from ..errors import ArgumentError, CheckpointError
from .configs import building, checked, unknown
from .forward import INPUT, path_of
from .perceptron import FullyConnected, from_config, is_described

BACKBONE = "backbone"  # of a network: all but its head
MAX_LENGTH = 64  # tokens of a probe
DEFAULT_SIDE = 224  # pixels of a probe for a network that takes images of any size
MAX_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Images:
    """What a network for images expects: (n, channels, height, width), standardised by `mean` and `std`."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a network for text expects: (n, up to `length`) ids below `vocabulary`."""

    vocabulary: int
    length: int


@dataclass(frozen=True, slots=True)
class Network:
    """A module without weights (parameters on the meta device, in eval mode) and what it needs to be run.

    `names`: parameter or buffer of the module → tensor of the checkpoint. `blocks`: module paths in order. `tap`: the
    first of them, or the first ReLU of a plain module. `missing`: parameters that no tensor fills; `weights` makes
    them NaN, so that nothing that depends on them is taken for a feature.
    """

    module: nn.Module
    source: Literal["timm", "transformers", "module"]
    inputs: Images | Tokens | None  # None: a plain module, whose probes must be given
    names: Mapping[str, str]
    blocks: tuple[str, ...]
    tap: str
    missing: tuple[str, ...]


def build(checkpoint: Checkpoint, like: nn.Module | None = None) -> Network:
    """The network a checkpoint belongs to: the class its config names, else a copy of `like` without its weights.

    Costs the config (and, for images of transformers, the preprocessor's); no weight is read, `like` stays as it is.
    Attention is set to its plain form where the class allows it, since fused kernels have no forward-mode derivative.
    Raises `CheckpointError` where neither library knows the class, the config is not to be trusted, tensors are
    packed, merged or split, or something before the default tap has no tensor.
    """
    who = f"`{checkpoint.ref.name}`"
    try:
        if found := _library_module(checkpoint, checkpoint.config, who):
            return _network(*found, checkpoint, who)
        if like is None and is_described(checkpoint.config):
            shapes = {name: entry.shape for name, entry in checkpoint.items()}
            with building(checkpoint, who):
                made = from_config(checkpoint.config, shapes, who)
            return _network(made, "module", checkpoint, who)
        if like is None:
            raise CheckpointError(
                f"Expected a config.json of timm or transformers in {who}, found none. "
                "Pass a module of its class as `like`."
            )
    except CheckpointError:
        if like is None:
            raise
    return _network(copy_on_meta(like), "transformers" if _is_transformers(like) else "module", checkpoint, who)


def _library_module(
    checkpoint: Checkpoint, config: Mapping[str, Any], who: str
) -> tuple[nn.Module, Literal["timm", "transformers"]] | None:  # fmt: skip
    """The module of the class that a config names, and its library; None where it names none of the two."""
    if isinstance(config.get("model_type"), str):
        return _transformers(checkpoint, config, who), "transformers"
    if not is_described(config) and isinstance(config.get("architecture"), str):
        return _timm(checkpoint, config, who), "timm"
    return None


def module_of_config(checkpoint: Checkpoint) -> tuple[nn.Module, str]:
    """The module of the class that a config of transformers, timm or diffusers names, its parameters on the meta
    device, and in words what it is. Quantized models are built plain: only names and shapes are wanted.

    Raises `CheckpointError` where the config names no such class, and where its library is not installed.
    """
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    who = f"`{checkpoint.ref.name}`"
    names = {"model_type": "transformers", "architecture": "timm", "_class_name": "diffusers"}
    library = next((library for key, library in names.items() if isinstance(config.get(key), str)), None)
    if library is None:
        raise CheckpointError(f"Expected a config.json of transformers, timm or diffusers in {who}, found none.")
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(f"The config of {who} is one of {library}, which is not installed here.") from error
    found = _library_module(checkpoint, config, who)
    module = found[0] if found else _diffusers(checkpoint, config, who)
    return module.eval(), f"{type(module).__name__} of {library} {version}"


def standard_inputs(module: nn.Module, checkpoint: Checkpoint) -> Images | Tokens | None:
    """What a module of `module_of_config` expects, where it is images or text; None of a plain module."""
    source = "transformers" if _is_transformers(module) else "module"
    return _inputs(module, source, checkpoint, f"`{checkpoint.ref.name}`")


def stored_names(module: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in the module → name in the file, where the library calls a tensor something else; what it merges or splits
    on loading is not among them."""
    return _renamed(module, checkpoint, "") if _is_transformers(module) else {}


def run_inputs(network: Network, probes: Tensor) -> dict[str, Tensor] | Tensor:
    """What the module is called with: keywords for transformers (`module(**inputs)`), else the tensor itself."""
    if network.source != "transformers":
        return probes
    if isinstance(network.inputs, Images):
        return {"pixel_values": probes}
    pair = bool(getattr(network.module.config, "is_encoder_decoder", False))
    return {"input_ids": probes, **({"decoder_input_ids": probes} if pair else {})}


def weights(
    network: Network, checkpoint: Checkpoint, names: Sequence[str] | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Tensors by the module's own names, floats as float32: every parameter and buffer, or only `names`.

    Tied parameters come once, under the name met first. What no checkpoint stores (rotary frequencies, position ids)
    is the module's; what is `missing` is NaN.
    """
    module = network.module
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name in names or ():
        if name not in tensors:
            raise ArgumentError(
                f"Expected a parameter or buffer of the network, got {name!r}{_similar_names(name, tensors)}."
            )
    wanted = list(dict.fromkeys(tensors if names is None else names))
    stored = {name: network.names[name] for name in wanted if name in network.names}
    for name, key in stored.items():
        found = checkpoint[key].shape if key in checkpoint else "none"
        if found != tuple(tensors[name].shape):
            raise CheckpointError(
                f"Expected {key!r} of shape {tuple(tensors[name].shape)} in `{checkpoint.ref.name}`, found {found}. "
                "Build a network of its own for it."
            )
    read = dict(zip(stored, checkpoint.whole([*stored.values()]), strict=True))
    result: dict[str, Tensor] = {}
    for name in wanted:
        if name in read:
            tensor = read.pop(name)  # one by one: two copies of a model are one too many
        elif name in network.missing:
            tensor = torch.full(tensors[name].shape, math.nan)
        else:
            tensor = tensors[name].detach().clone()
        result[name] = tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
    return result


def taps(network: Network, names: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Module paths whose outputs are features: the default tap, `"blocks"`, or the names given.

    A path with `.input` behind it stands for what that module is given, `"backbone"` for what the head is given. Of
    `"blocks"` those that a missing parameter reaches are left out; asked for by name, they are an error.
    """
    if names is None:
        return (network.tap,)
    if names == "blocks":
        return tuple(block for block in network.blocks if not _missing_before(network.module, block, network.missing))
    known = [path for path, _ in network.module.named_modules() if path]
    asked = (names,) if isinstance(names, str) else tuple(names)
    asked = tuple(f"{head_of(network.module)}{INPUT}" if name == BACKBONE else name for name in asked)
    if not asked:
        raise ArgumentError("Expected at least one tap, got none. Leave `taps` out for the default one.")
    for name in asked:
        if path_of(network.module, name) not in known:
            raise ArgumentError(
                f"Expected the path of a module as tap, got {name!r}{_similar_names(name, known)}. "
                "`[name for name, _ in module.named_modules()]` lists all, taps='blocks' takes every block."
            )
        if lost := _missing_before(network.module, name, network.missing):
            raise ArgumentError(f"Expected a tap whose weights are all there, but {name!r} needs {lost[0]!r}.")
    return asked


def upstream(module: nn.Module, tap: str) -> tuple[str, ...]:
    """Parameters and buffers registered up to the end of a tap: all that its output depends on in the networks of
    both libraries, which register their parts in the order they run them. A tap elsewhere shows NaN or the meta device.
    """
    found: dict[int, str] = {}  # tied ones once, as in `weights`
    inside, end = False, path_of(module, tap)
    for path, child in module.named_modules():
        within = path == end or _within(path, end)
        if (inside and not within) or (within and end != tap):
            break
        inside = inside or within
        for name, tensor in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]:
            found.setdefault(id(tensor), f"{path}.{name}" if path else name)
    return tuple(found.values())


def head_of(module: nn.Module) -> str:
    """The path of the head: the linear layer that is registered last. Raises `CheckpointError` where there is none."""
    layers = [path for path, part in module.named_modules() if path and isinstance(part, nn.Linear)]
    if not layers:
        raise CheckpointError(f"Expected a linear layer as the head of a {type(module).__name__}, found none.")
    return layers[-1]


def _missing_before(module: nn.Module, tap: str, missing: Sequence[str]) -> list[str]:
    return [name for name in upstream(module, tap) if name in missing] if missing else []


def _similar_names(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, [*known], n=4, cutoff=0.4)
    return f"; near it: {', '.join(close)}" if close else ""


# ---- what a config may say


def _timm(checkpoint: Checkpoint, config: Mapping[str, Any], who: str) -> nn.Module:
    """The model timm registers under `architecture`, with the sizes of the config (today's form, or the flat one)."""
    import timm

    name, arguments = config["architecture"], checked(config.get("model_args") or {}, "model_args", who, _registered)
    if not _registered(name):
        raise unknown(name, who)
    stated = config.get("pretrained_cfg", config)
    stated = stated if isinstance(stated, dict) else {}
    keep = ("input_size", "fixed_input_size", "mean", "std", "num_classes", "pool_size", "global_pool")
    about = {key: checked(stated[key], key, who, _registered) for key in keep if stated.get(key) is not None}
    for key in ("num_classes", "global_pool"):
        if config.get(key) is not None:
            arguments.setdefault(key, checked(config[key], key, who, _registered))
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        about["fixed_input_size"] = False
    with building(checkpoint, who):
        return timm.create_model(name, pretrained=False, pretrained_cfg=about or None, **arguments)


def _registered(name: Any) -> bool:
    import timm

    return isinstance(name, str) and bool(re.fullmatch(r"[\w.\-]{1,120}", name)) and timm.is_model(name)


def _transformers(checkpoint: Checkpoint, config: Mapping[str, Any], who: str) -> nn.Module:
    """The class of transformers that `architectures` names, made from the config of its `model_type`."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls: Any
    kind, names = config["model_type"], config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    try:
        cls = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    except Exception as error:  # a class that needs a package which is not here
        reason = printable(str(error))[:200]
        raise CheckpointError(f"transformers cannot give the class {name} of {who}: {reason}") from error
    known = inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel)
    if kind not in CONFIG_MAPPING or not known:
        what = printable(f"{kind} / {name}")[:120]
        if isinstance(name, str) and ("auto_map" in config or kind not in CONFIG_MAPPING):
            raise CheckpointError(
                f"{who} ({what}) needs remote code, which is never run: transformers {transformers.__version__} does "
                "not know this class. Pass a module of its class as `like`."
            )
        raise CheckpointError(f"Expected `architectures` of {who} to name a class of transformers, got {what}.")
    if config.get("quantization_config") is not None:
        raise CheckpointError(f"Expected plain weights in {who}, got quantized ones. Name the model they came from.")
    stated = checked(dict(config), "config", who, _registered)
    with building(checkpoint, who):
        made = CONFIG_MAPPING[kind].from_dict(stated)
        made._attn_implementation = "eager"
        made._experts_implementation = "eager"
        if hasattr(made, "use_cache"):
            made.use_cache = False
        return cls(made)


def _diffusers(checkpoint: Checkpoint, config: Mapping[str, Any], who: str) -> nn.Module:
    """The model of diffusers that `_class_name` names, with the sizes of its config."""
    import diffusers

    name = config["_class_name"]
    made: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    known = inspect.isclass(made) and issubclass(made, diffusers.ModelMixin)
    if not known:
        what = printable(name)[:80]
        raise CheckpointError(f"Expected `_class_name` of {who} to name a model of diffusers, got {what}.")
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    with building(checkpoint, who):
        return made.from_config(checked(plain, "config", who, _registered))


def copy_on_meta(module: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device from the start and whose buffers keep their values."""
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
        for tensor in module.parameters()
    }
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ArgumentError(f"Expected a module that can be copied, got {type(module).__name__}: {error}.") from error


def _is_transformers(module: nn.Module) -> bool:
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _network(
    module: nn.Module, source: Literal["timm", "transformers", "module"], checkpoint: Checkpoint, who: str
) -> Network:
    """The module in eval mode with plain attention, its names matched with the checkpoint's, and its blocks."""
    module.eval()
    if source == "transformers" and getattr(module.config, "_attn_implementation", "eager") != "eager":
        module.set_attn_implementation("eager")  # type: ignore[operator]
    for child in module.modules():
        if isinstance(getattr(child, "fused_attn", None), bool):  # timm
            child.fused_attn = False  # type: ignore[assignment]
    names, missing = _match(module, checkpoint, _renamed(module, checkpoint, who) if source == "transformers" else {})
    blocks, tap = _blocks(module)
    if lost := _missing_before(module, tap, missing):
        shape = tuple(module.state_dict()[lost[0]].shape)
        raise CheckpointError(
            f"Expected a tensor for each parameter of {type(module).__name__} up to {tap!r} in {who}, found none for "
            f"{len(lost)} of them, such as {lost[0]!r} of shape {shape}."
        )
    return Network(module, source, _inputs(module, source, checkpoint, who), names, blocks, tap, missing)


# ---- names


def _renamed(module: Any, checkpoint: Checkpoint, who: str) -> dict[str, str]:
    """Name in the module → name in the file, by transformers' own tables (an internal interface, which PEFT uses too;
    without it the conventions of this package remain). `who`: in the error where one tensor is several there; "" leaves
    those out."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return {}
    state = module.state_dict()
    rules = get_model_conversion_mapping(module)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    result: dict[str, str] = {}
    for stored in sorted(checkpoint):
        name, converted = rename_source_key(stored, renamings, converters, module.base_model_prefix, state)
        if converted is None:
            result.setdefault(name, stored)
        elif name in state and stored not in state and who:
            raise CheckpointError(
                f"{stored!r} of {who} is one part of {name!r}: tensors that transformers merges or splits on loading "
                "(experts) are not supported here. Compare the weights instead."
            )
    return result


def _match(
    module: nn.Module, checkpoint: Checkpoint, renamed: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Parameter or stored buffer → tensor of the same shape: the library's name for it, the same name, or one that
    `conventions.canonical` makes the same. And what has none; a head of another size is among that."""
    state = module.state_dict(keep_vars=True)
    theirs = canonical_names(checkpoint)
    spelled = {name: theirs[short] for short, name in canonical_names(state).items() if short in theirs}
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in state.items():
        first_name = first.setdefault(id(tensor), name)  # tied parameters are one
        for stored in (renamed.get(name), name, spelled.get(name)):
            if first_name not in names and stored is not None and _fits(tensor, checkpoint, stored):
                names[first_name] = stored
    parameters = dict(module.named_parameters())
    needed = [name for name in first.values() if name in parameters or name.endswith(("running_mean", "running_var"))]
    return names, tuple(name for name in needed if name not in names)


def _fits(tensor: Tensor, checkpoint: Checkpoint, name: str) -> bool:
    entry = checkpoint.get(name)
    if entry is None or entry.shape != tuple(tensor.shape):
        return False
    return tensor.is_floating_point() == entry.dtype.startswith(("F", "BF"))  # packed integers are no weights


# ---- blocks


def _blocks(module: nn.Module) -> tuple[tuple[str, ...], str]:
    """Paths of the blocks, and the default tap.

    A chain is a module whose children (two or more, in a `ModuleList` or `Sequential` also one) are of one class and
    hold two weight matrices each, none of them in a chain of its own: a stage is no block, nor is a convolution with
    its norm. The members of all chains are the blocks; where some hold matrices of two axes (attention), those of
    convolutions alone (a backbone) are left out. A module without a chain is plain: its blocks are its layers with a
    matrix and its activations, the tap is the first `nn.ReLU`, else the second of them: the output of a first layer
    is linear in the weights, and there every linearised candidate equals the child.
    """
    modules = dict(module.named_modules())
    kinds = {_chain(child) for child in modules.values()} - {None}
    chains = [path for path, child in modules.items() if _chain(child, least=1) in kinds]
    inner = [path for path in chains if not any(other != path and _within(other, path) for other in chains)]
    members = [f"{path}.{name}" if path else name for path in inner for name, _ in modules[path].named_children()]
    flat = [path for path in members if any(tensor.ndim == 2 for tensor in modules[path].parameters())]
    if blocks := tuple(flat or members):
        return blocks, blocks[0]
    leaves = {path: child for path, child in modules.items() if path and not [*child.children()]}
    plain = tuple(path for path, child in leaves.items() if _matrices(child) or _is_activation(child))
    if not plain:
        raise CheckpointError(f"Expected a network with layers, got {type(module).__name__} without any.")
    return plain, next((path for path in plain if isinstance(leaves[path], nn.ReLU)), plain[:2][-1])


def _chain(module: nn.Module, least: int = 2) -> type | None:
    """The class of what a module is a chain of, if it is one."""
    children = [*module.children()]
    least = 1 if isinstance(module, (nn.ModuleList, nn.Sequential)) else least
    uniform = len(children) >= least and len({type(child) for child in children}) == 1
    whole = uniform and all(_matrices(child) > 1 and [*child.children()] for child in children)
    return type(children[0]) if whole else None


def _within(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def _matrices(module: nn.Module) -> int:
    return sum(tensor.ndim > 1 for tensor in module.parameters())


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not [*module.parameters()]


# ---- inputs


def _inputs(module: Any, source: str, checkpoint: Checkpoint, who: str) -> Images | Tokens | None:
    if source == "transformers":
        return _transformers_inputs(module, checkpoint, who)
    if isinstance(module, FullyConnected) and module.side:
        return Images(1, module.side, module.side, (0.0,), (1.0,))
    if not isinstance(getattr(module, "pretrained_cfg", None), Mapping) and source != "timm":
        return None
    from timm.data import resolve_model_data_config

    arguments = checkpoint.config.get("model_args") or {}
    stated = resolve_model_data_config(module)
    channels, *side = stated["input_size"]
    side = _side(arguments.get("img_size")) or side
    return _images(arguments.get("in_chans") or channels, side, stated["mean"], stated["std"])


def _transformers_inputs(module: Any, checkpoint: Checkpoint, who: str) -> Images | Tokens:
    """`image_size` and `num_channels` of the config; mean, std and, where the config leaves it open, the size of
    preprocessor_config.json, at most `DEFAULT_SIDE`; where that says nothing either, 0.5, 0.5 and `DEFAULT_SIDE`."""
    config = module.config
    if module.main_input_name == "input_ids":
        text = config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None)
        return Tokens(text.vocab_size, min(positions, MAX_LENGTH) if isinstance(positions, int) else MAX_LENGTH)
    if module.main_input_name != "pixel_values":
        raise CheckpointError(f"Expected a network for images or text in {who}, got one for {module.main_input_name}.")
    vision = getattr(config, "vision_config", None) or config
    stated = json_data(checkpoint.repo.read_optional("preprocessor_config.json", 10**6)) if checkpoint.repo else {}
    side = _side(getattr(vision, "image_size", None))
    for key in ("crop_size", "size"):
        side = side or [min(length, DEFAULT_SIDE) for length in _side(stated.get(key))]
    channels = getattr(vision, "num_channels", 3)
    return _images(channels, side or [DEFAULT_SIDE, DEFAULT_SIDE], stated.get("image_mean"), stated.get("image_std"))


def _side(value: Any) -> list[int]:
    """[height, width] of the ways to write a size, or nothing."""
    if isinstance(value, Mapping):
        short = value.get("shortest_edge")
        value = [value.get("height", short), value.get("width", short)]
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    pair = pair * 2 if len(pair) == 1 else pair
    return pair if len(pair) == 2 and all(isinstance(n, int) and 0 < n <= MAX_SIDE for n in pair) else []


def _images(channels: Any, side: Sequence[int], mean: Any, std: Any) -> Images:
    """With a mean and a spread for each channel; 0.5 where what is written cannot be used."""
    if not isinstance(channels, int) or not 0 < channels <= MAX_SIDE or not _side(list(side)):
        raise CheckpointError(f"Expected the size of an image in the config, got {channels} channels of {side}.")

    def each(values: Any, least: float) -> tuple[float, ...]:
        values = [values] if isinstance(values, (int, float)) else values
        good = isinstance(values, (list, tuple)) and len(values) > 0
        if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) and v > least for v in values):
            return (0.5,) * channels
        return tuple(map(float, values)) if len(values) == channels else (sum(values) / len(values),) * channels

    return Images(channels, side[0], side[1], each(mean, -math.inf), each(std, 0.0))
