"""Shrink any `transformers` configuration by the names and default values of its fields, with no table of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 256
POSITIONS = 128


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to shrink. `width` 0 divides widths instead of setting them; `divisor` 1 leaves them alone."""

    name: str
    width: int
    heads: int
    divisor: int
    layers: int = 2
    images: bool = True
    own_head_size: bool = False


STRATEGIES = (
    Strategy("uniform", width=64, heads=4, divisor=8),
    Strategy("ratio", width=0, heads=0, divisor=8),
    Strategy("flat", width=32, heads=2, divisor=16),
    Strategy("own head size", width=128, heads=2, divisor=2, own_head_size=True),
    Strategy("large images", width=64, heads=4, divisor=8, images=False),
    Strategy("half", width=0, heads=0, divisor=2),
    Strategy("shallow", width=0, heads=0, divisor=1),
    Strategy("shallow, large images", width=0, heads=0, divisor=1, images=False),
)

NOT_WIDTH = {
    "kernel", "stride", "strides", "ratio", "ratios", "window", "chunk", "rate", "temperature", "buckets", "distance",
    "fft", "hop", "mel", "bins", "group", "groups", "seq", "length", "pad", "padding", "coefficient", "cost", "theta",
    "scale", "factor", "frames", "patches", "points", "batch", "grid", "labels", "loss", "min", "conv_kernel", "beam",
    "reduction", "dilation", "samples", "tubelet", "horizon", "freq", "fps", "bits", "classes",
}  # fmt: skip
WIDTH = {
    "hidden", "dim", "dims", "size", "sizes", "embd", "embed", "channels", "width", "rank", "inner", "features",
    "filters", "state", "proj", "model", "embedding", "descriptor", "units", "chans",
}  # fmt: skip
LAYERS = {"layers", "layer", "depth", "depths", "blocks", "repeats"}
PLACEHOLDERS = tuple(f"{kind}_token_{suffix}" for kind in ("image", "video", "audio") for suffix in ("id", "index"))
UNSET = 1 << 40  # above any real id: where a placeholder's would be if the default configuration had one
WINDOWS = {"window", "radius", "chunk"}
INDEXES = {"indexes", "indices", "index", "idx", "indexs"}
FEED_FORWARD = {"intermediate", "ffn", "feedforward", "ff", "inner", "mlp"}
IMAGE_SIZES = ("image_size", "img_size", "input_size", "crop_size", "pretrain_image_size", "spatial_size")
HEAD_SIZE = ("head_dim", "head_size", "head_width", "kv_channels", "d_kv", "d_head", "rotary_dim", "head_channels")
DERIVED = {"num_labels", "id2label", "label2id", "dtype", "architectures", "chunk_size_feed_forward",
           "output_hidden_states", "output_attentions", "return_dict", "transformers_version",
           "problem_type"}  # fmt: skip


def walk(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """`config` and every configuration inside it, outermost first."""
    yield config
    for key in config.sub_configs:
        inner = read(config, key)
        if isinstance(inner, PreTrainedConfig):
            yield from walk(inner)


def read(config: PreTrainedConfig, name: str, default: Any = None) -> Any:
    """An attribute, or `default` where the configuration refuses to answer (attributes that vary by layer do)."""
    try:
        return getattr(config, name, default)
    except Exception:  # each model's configuration raises its own
        return default


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_number(item) for item in value)


def _below(value: int) -> int:
    """The largest power of two not above `value`."""
    return 1 << (max(value, 1).bit_length() - 1)


class _Shrinker:
    """The new values of one configuration's fields under one strategy."""

    def __init__(self, config: PreTrainedConfig, strategy: Strategy, tokens: Callable[[int], int]) -> None:
        self.config, self.strategy, self.tokens = config, strategy, tokens
        heads = self._canonical("num_attention_heads")
        hidden = self._canonical("hidden_size")
        self.heads = heads if _number(heads) and heads > 0 else 8
        self.hidden = hidden if _number(hidden) and hidden > 0 else 512
        if strategy.own_head_size:
            size = self._canonical("head_dim") or self.hidden // self.heads
            self.strategy = strategy = dataclasses.replace(strategy, width=strategy.heads * int(size))
        self.kept = self._kept_layers()
        self.outputs = self._outputs()
        self.depth = max(len(self.kept) if self.kept else strategy.layers, len(self.outputs))

    def _outputs(self) -> list[int]:
        """The stages that a backbone was asked to give out, where they are not the ones it gives by itself."""
        asked = read(self.config, "_out_indices")
        return list(asked) if asked and asked != read(type(self.config)(), "_out_indices") else []

    def _stage_outputs(self) -> list[int]:
        """As many stages of the shrunk backbone, counted from its last."""
        if self._stages() or not self.kept:
            return self.outputs
        return [self.depth + 1 - len(self.outputs) + index for index in range(len(self.outputs))]

    def _canonical(self, name: str) -> Any:
        return read(self.config, name)

    def _kept_layers(self) -> list[int]:
        """One layer of each kind, in order, where the configuration lists a kind per layer; at least two layers."""
        total = self._canonical("num_hidden_layers")
        if not _number(total) or total < 1:
            return []
        lists = [v for v in vars(self.config).values() if isinstance(v, (list, tuple)) and len(v) == total > 4]
        kinds = [v for v in lists if all(isinstance(item, (str, int)) for item in v) and len(set(v)) <= 4]
        seen: dict[Any, int] = {}
        for index in range(total):
            seen.setdefault(tuple(str(kind[index]) for kind in kinds), index)
        kept = sorted(seen.values())[:6]
        for index in range(total):
            if len(kept) >= min(max(self.strategy.layers, len(self._outputs())), total):
                break
            if index not in kept:
                kept.append(index)
        return sorted(kept)

    def fields(self) -> dict[str, Any]:
        """Constructor arguments: every declared field whose value differs from the default after shrinking."""
        fresh = type(self.config)()
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self.config):
            name = field.name
            if name in DERIVED or name.startswith("_") or name in self.config.sub_configs:
                continue
            declared = field.default
            if declared is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                declared = field.default_factory()
            value = read(self.config, name, declared)
            if name == "head_dim" and value is None:
                value = self.hidden // self.heads  # what leaving it out means, for models that read it as it is
            elif value is None and name in PLACEHOLDERS:
                result[name] = self.tokens(UNSET + PLACEHOLDERS.index(name))
                continue
            elif declared is None and read(fresh, name) == value and not self._per_layer(value):
                kept = isinstance(value, dict) or "feature_size" in name
                if not kept:  # derived from other fields when left out
                    continue
            changed = self.value(name, value)
            if changed != declared:
                result[name] = changed
        if self.outputs:
            result["out_indices"] = self._stage_outputs()
        return result

    def _per_layer(self, value: object) -> bool:
        total = self._canonical("num_hidden_layers")
        return bool(self.kept) and isinstance(value, (list, tuple)) and len(value) == total and total > 4

    def value(self, name: str, value: Any) -> Any:
        if self._per_layer(value) and name not in ("hidden_sizes",):
            items = [value[index] for index in self.kept]
            if not _numbers(items) or len(set(value)) <= 4 and not set(name.split("_")) & WIDTH:
                return type(value)(items)
            value = items
        if _number(value):
            return self.scalar(name, value)
        if _numbers(value):
            return type(value)(self.sequence(name, list(value)))
        if isinstance(value, dict):
            return self.mapping(name, value)
        if isinstance(value, (list, tuple)) and value and all(_numbers(item) for item in value):
            return type(value)(type(item)(self.sequence(name, list(item))) for item in value)
        return value

    def scalar(self, name: str, value: int) -> int:
        words = set(name.lower().split("_"))
        if self._is_token(name, words):
            return self.tokens(value)
        if words & {"vocab", "codebook", "vocabulary"} or name in ("num_embeddings", "unpadded_vocab_size"):
            return min(value, VOCABULARY)
        if self._is_position(name, words):
            return min(value, POSITIONS)
        if "experts" in words or "expert" in words and words & {"num", "n"} or name in ("moe_topk", "moe_k"):
            return min(value, 2 if words & {"tok", "token", "topk", "top", "k", "shared"} else 8)
        if name in ("n_group", "topk_group"):
            return min(value, 2)
        if words & {"period", "interval", "every", "frequency"} or name == "first_k_dense_replace":
            return min(value, 1 if name == "first_k_dense_replace" else 2)
        if words & {"offset"}:
            return min(value, 1)
        if words & LAYERS and not words & (
            INDEXES | {"norm", "feature", "per", "type", "kernel", "dim", "size", "channels"}
        ):
            main = value == self._canonical("num_hidden_layers")
            return min(value, self.depth if main else self.strategy.layers)
        if any(part in name for part in HEAD_SIZE):
            return self.head_size(value)
        if words & {"heads", "head"} and not words & {"dim", "size", "out", "in", "channels"}:
            return self.head_count(value, key_value=bool(words & {"kv", "value"}) and "linear" not in words)
        if "quer" in name or "proposals" in words or "detection" in words or "landmarks" in words:
            return min(value, 16)
        if words & WINDOWS and value > 24 and self.strategy.divisor > 2:
            return min(8 * value // self._least_window(), POSITIONS)
        if name == "window_size" and self._stages():
            return min(value, 4)
        if name in IMAGE_SIZES:
            return self.image(value)
        if name == "image_embedding_size":
            patch = self.patch()
            return max(self.image(value * patch) // patch, 1)
        if name in ("image_seq_length", "audio_seq_length", "video_seq_length", "max_text_len"):
            return min(value, 16)
        if words & WIDTH and not words & NOT_WIDTH and not name.startswith("max_") and value >= 24:
            return self.width(name, value)
        return value

    def sequence(self, name: str, values: list[int]) -> list[int]:
        words = set(name.lower().split("_"))
        if self._is_token(name, words):
            return [self.tokens(value) for value in values]
        if words & INDEXES or name.endswith("_layers") and "encode_proj" not in name and max(values) > 8:
            if max(values) <= 4:
                return values
            return sorted({min(index, self.depth - 1) for index in range(len(values))})
        if words & {"heads", "head"} and not words & {"dim", "size"}:
            return [_below(value) for value in values] if self.strategy.heads else values
        if words & LAYERS:
            return [min(value, self.strategy.layers) for value in values]
        if name in IMAGE_SIZES:
            return [self.image(value) for value in values]
        if "feature_size" in name or words & {"feature"} and words & {"resolution", "shape"}:
            before = read(self.config, "image_size") or self._inner_image()
            if isinstance(before, (list, tuple)):
                before = before[0]
            return [max(value * self.image(before) // before, 1) for value in values] if _number(before) else values
        if words & {"window"}:
            return [8 if value > 24 else value for value in values]
        if words & (WIDTH | {"channels"}) and not words & NOT_WIDTH and max(values) >= 24:
            if not self.strategy.width:
                return [max(value // self.strategy.divisor, min(value, 4)) for value in values]
            divisor = max(_below(max(values)) // (2 * self.strategy.width), 1)
            if len(set(values)) == 1:
                return [self.width(name, values[0])] * len(values)
            return [max(value // divisor, min(value, 4)) for value in values]
        return values

    def mapping(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Rotary settings: sections and factor lists shrink with the head's size; anything else is kept."""
        if "rope" not in name:
            return values
        result: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                value = self.mapping(name, value)
            elif key == "mrope_section" and _numbers(value):
                value = self._sections(list(value))
            elif key in ("short_factor", "long_factor"):
                value = list(value)[: max(len(value) * self.head_size(64) // 64, 1)]
            elif key == "original_max_position_embeddings":
                value = min(value, POSITIONS)
            result[key] = value
        return result

    def _sections(self, values: list[int]) -> list[int]:
        head = self._canonical("head_dim") or self.hidden // self.heads
        total = max(sum(values) * self.head_size(head) // head, len(values))
        parts = [max(value * total // sum(values), 1) for value in values]
        parts[0] += total - sum(parts)
        return parts

    def width(self, name: str, value: int) -> int:
        if not self.strategy.width:
            return max(value // self.strategy.divisor, min(value, 16))
        words = set(name.lower().split("_"))
        if "filters" in words:  # a base width, doubled at every stage
            return min(value, self.strategy.width // 8)
        wide = 2 if words & FEED_FORWARD and self.strategy.name == "uniform" else 1
        return min(value, wide * self.strategy.width)

    def head_size(self, value: int) -> int:
        if not self.strategy.width:
            return max(value // self.strategy.divisor, min(value, 4))
        return min(value, self.strategy.width // self.strategy.heads)

    def head_count(self, value: int, key_value: bool) -> int:
        if not self.strategy.heads:
            return value
        if key_value and value < self.heads:
            return min(value, max(self.strategy.heads // 2, 1))
        return min(value, self.strategy.heads)

    def patch(self) -> int:
        patch = next((size for part in walk(self.config) if (size := read(part, "patch_size"))), None)
        if isinstance(patch, (list, tuple)):
            patch = patch[0] if patch else None
        return patch if _number(patch) and patch > 0 else 16

    def _inner_image(self) -> Any:
        return next((size for part in walk(self.config) if (size := read(part, "image_size"))), None)

    def _stages(self) -> int:
        depths = read(self.config, "depths")
        return len(depths) if isinstance(depths, (list, tuple)) else 0

    def _least_window(self) -> int:
        """Windows shrink together, so that one which is a multiple of another stays so."""
        fields = {field.name: read(self.config, field.name) for field in dataclasses.fields(self.config)}
        return min(v for name, v in fields.items() if set(name.split("_")) & WINDOWS and _number(v) and v > 24)

    def image(self, value: int) -> int:
        """Four patches a side or 64 pixels; for windows over several scales, one window at the last scale."""
        if not self.strategy.images:
            return value
        patch = self.patch()
        small = 64 if 64 % patch == 0 else 4 * patch
        if self._stages() and read(self.config, "window_size") is not None:
            small = max(small, patch * 4 << (self._stages() - 1))
        return min(value, max(small, 2 * patch))

    @staticmethod
    def _is_token(name: str, words: set[str]) -> bool:
        if "token" in words and words & {"id", "index", "ids", "idx"}:
            return True
        return name.endswith(("_id", "unk_index", "pad_index", "mask_index", "bos_index", "eos_index", "_token"))

    @staticmethod
    def _is_position(name: str, words: set[str]) -> bool:
        if name in ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length", "context_length"):
            return True
        return "max" in words and bool(words & {"position", "positions", "length", "len", "seqlen"})


class _Tokens:
    """Distinct special tokens stay distinct: ids beyond the small vocabulary are dealt from its end, by old id."""

    def __init__(self) -> None:
        self.dealt: dict[int, int] = {}

    def __call__(self, value: int) -> int:
        if value < VOCABULARY - 64:
            return value
        return self.dealt.setdefault(value, VOCABULARY - 1 - len(self.dealt) % 64)


def shrink(
    config: PreTrainedConfig, strategy: Strategy, tokens: Callable[[int], int] | None = None
) -> PreTrainedConfig:
    """A small configuration of the same class: few layers, one of each kind, narrow, with a small vocabulary."""
    tokens = tokens or _Tokens()
    arguments = _Shrinker(config, strategy, tokens).fields()
    for key in config.sub_configs:
        inner = read(config, key)
        if isinstance(inner, PreTrainedConfig):
            arguments[key] = shrink(inner, strategy, tokens)
    small = type(config)(**arguments)
    for part in walk(small):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return small


def fit_special_tokens(config: PreTrainedConfig) -> int:
    """The smallest vocabulary in `config`: token ids below it are valid for every embedding."""
    sizes = [read(part, "vocab_size") for part in walk(config) if _number(read(part, "vocab_size"))]
    return min([size for size in sizes if size > 0], default=VOCABULARY)


def reserved(config: PreTrainedConfig) -> set[int]:
    """Ids that mean something to the model and must not be drawn as ordinary text."""
    ids: set[int] = set()
    for part in walk(config):
        for name, value in vars(part).items():
            if not _Shrinker._is_token(name, set(name.split("_"))):
                continue
            if _number(value):
                ids.add(value)
            elif _numbers(value):
                ids.update(value)
    return ids


def lookup(config: PreTrainedConfig, names: tuple[str, ...], kind: str = "") -> Any:
    """The first of `names` set to a value, sought first in configurations whose key contains `kind`, then in all."""
    parts = list(_keyed(config))
    preferred = [part for key, part in parts if kind and kind in key]
    for group in (preferred, [part for _, part in parts]):
        for name in names:
            for part in group:
                value = read(part, name)
                if value is not None:
                    return value
    return None


def _keyed(config: PreTrainedConfig, key: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    yield f"{key} {config.model_type}", config
    for name in config.sub_configs:
        inner = read(config, name)
        if isinstance(inner, PreTrainedConfig):
            yield from _keyed(inner, f"{key} {name}")
