"""Example inputs for any model of `transformers`, from its forward signature and its configuration."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from benchmarks.zoo.shrink import fit_special_tokens, lookup, reserved

TEXT = ("input_ids", "decoder_input_ids", "qformer_input_ids", "classes_input_ids", "tasks_input_ids")
IMAGE = ("pixel_values", "pixel_values_videos")
AUDIO = ("input_features", "input_values")
SERIES = ("past_values", "past_time_features", "past_observed_mask", "future_values", "future_time_features")
EXTRA = ("bbox", "image_grid_thw", "decoder_input_ids", "conditional_pixel_values", "qformer_input_ids",
         "input_features_mask", "image_embeds_position_mask", "image_attention_mask")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which inputs to give and in which layout; `name` identifies it in the generated list."""

    inputs: str = "all"  # all: every modality, main: the main input alone, text, image, audio, required
    image: str = "image"  # image, video, patches, flat
    audio: str = "mel_time"  # mel_time, time_mel, wave, channel_wave
    length: int = 16
    batch: int = 2
    mask: bool = True

    @property
    def name(self) -> str:
        parts = [
            self.inputs,
            self.image,
            self.audio,
            str(self.length),
            str(self.batch),
            "mask" if self.mask else "bare",
        ]
        return "/".join(parts)

    @classmethod
    def parse(cls, name: str) -> Plan:
        inputs, image, audio, length, batch, mask = name.split("/")
        return cls(inputs, image, audio, int(length), int(batch), mask == "mask")


class Signature:
    """What a module's forward asks for."""

    def __init__(self, model: torch.nn.Module) -> None:
        parameters = inspect.signature(model.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.names = [p.name for p in named]
        self.required = [p.name for p in named if p.default is p.empty]
        if not self.names:
            raise ValueError("its forward names no inputs")
        main = getattr(model, "main_input_name", None)
        self.main = main if main in self.names else (self.required or self.names)[0]

    def has(self, group: tuple[str, ...]) -> bool:
        return any(name in self.names for name in group)


def plans(signature: Signature) -> Iterator[Plan]:
    """Plans worth trying, richest first; each at most once."""
    modalities = [group for group in (TEXT[:1], IMAGE, AUDIO) if signature.has(group)]
    choices = ["all", "main"] if len(modalities) > 1 else ["main", "all"]
    choices += ["text"] if signature.has(TEXT[:1]) and signature.main != "input_ids" else []
    images = ("image", "video") if signature.has(IMAGE) else ("image",)
    if {"grid_thw", "image_grid_thw"} & set(signature.names):
        images = ("patches", "image")
    elif {"spatial_shapes"} & set(signature.names):
        images = ("flat", "image")
    audios: tuple[str, ...] = ("mel_time",)
    if "input_features" in signature.names:
        audios = ("mel_time", "time_mel", "mel_full")
    elif "input_values" in signature.names:
        audios = ("wave", "channel_wave", "spectrum")
    seen = set()
    for length, batch, mask, inputs in itertools.product((16, 64), (2, 1), (True, False), (*choices, "decoder")):
        if (length, batch, mask).count(True) == 0 and (length, batch) != (16, 2) and not signature.has(TEXT[:1]):
            continue
        for image, audio in itertools.product(images, audios):
            only_text = inputs in ("main", "text") and signature.main == "input_ids" and not signature.required
            if only_text and (image, audio) != (images[0], audios[0]):
                continue
            plan = Plan(inputs, image, audio, length, batch, mask)
            if plan not in seen:
                seen.add(plan)
                yield plan


class InputMaker:
    """Seeded inputs for one model under one plan."""

    def __init__(self, model: torch.nn.Module, config: PreTrainedConfig, plan: Plan) -> None:
        self.model, self.config, self.plan = model, config, plan
        self.signature = Signature(model)
        self.generator = torch.Generator().manual_seed(7)
        self.rules: dict[str, Callable[[], Any]] = {
            "input_ids": self._ids,
            "decoder_input_ids": self._decoder_ids,
            "attention_mask": self._attention_mask,
            "pixel_values": lambda: self._pixels(self.plan.image),
            "pixel_values_videos": lambda: self._pixels("patches" if self.plan.image == "patches" else "video"),
            "input_features": self._features,
            "input_values": self._wave,
            "bbox": self._boxes,
            "inputs_embeds": self._embeddings,
            "hidden_states": lambda: self._pixels("patches"),
            "grid_thw": self._grid,
            "image_grid_thw": self._grid,
            "merge_sizes": lambda: torch.ones(self.plan.batch, dtype=torch.int64),
            "spatial_shapes": lambda: torch.full((self.plan.batch, 2), 4, dtype=torch.int64),
            "pixel_attention_mask": lambda: torch.ones(self.plan.batch, 16, dtype=torch.int64),
            "past_values": lambda: self._series("past_values"),
            "past_time_features": lambda: self._series("past_time_features"),
            "past_observed_mask": lambda: torch.ones_like(self._series("past_values")),
            "future_values": lambda: self._series("future_values"),
            "future_time_features": lambda: self._series("future_time_features"),
            "static_categorical_features": lambda: torch.zeros(self.plan.batch, 1, dtype=torch.int64),
            "noise": self._noise,
            "image_attention_mask": lambda: torch.ones(
                self.plan.batch, self.plan.length, self._frames(), dtype=torch.int64
            ),
        }

    def make(self) -> dict[str, torch.Tensor]:
        """Keyword arguments for `forward`; raises LookupError naming a required input that no rule makes."""
        result: dict[str, torch.Tensor] = {}
        for name in self._chosen():
            result[name] = self._one(name)
        if "input_ids" in result and self.plan.inputs == "all":
            self._place_tokens(result, "pixel_values", ("get_image_features", "get_video_features"), "image video")
            self._place_tokens(result, "input_features", ("get_audio_features",), "audio")
        if "attention_mask" in result and result["attention_mask"].dim() == 2 and "input_ids" in result:
            result["attention_mask"] = torch.ones_like(result["input_ids"])
        return result

    def _chosen(self) -> list[str]:
        names = set(self.signature.required)
        kind = self.plan.inputs
        if kind in ("main", "decoder"):
            names.add(self.signature.main)
        elif kind == "text":
            names.add("input_ids")
        else:
            groups = (*TEXT[:1], *IMAGE[:1], *AUDIO, *SERIES, *EXTRA)
            names |= {name for name in groups if name in self.signature.names}
            names.add(self.signature.main)
        if kind == "decoder" and "decoder_input_ids" in self.signature.names:
            names.add("decoder_input_ids")
        if self.plan.mask and "attention_mask" in self.signature.names and "input_ids" in names:
            names.add("attention_mask")
        if "noise" in self.signature.names:
            names.add("noise")
        order = {name: index for index, name in enumerate(self.signature.names)}
        return sorted(names, key=lambda name: order.get(name, len(order)))

    def _one(self, name: str) -> torch.Tensor:
        rule = self.rules.get(name)
        if rule is not None:
            return rule()
        if name.endswith("input_ids"):
            return self._ids()
        if name.endswith("position_mask"):
            count = self._number(("latent_query_num", "image_seq_length", "num_query_tokens"), 4)
            return (torch.arange(self.plan.length) < count)[None].repeat(self.plan.batch, 1)
        if "mask" in name:
            return self._mask_for(name)
        if name.endswith(("token_type_ids", "type_ids")):
            return torch.zeros(self.plan.batch, self.plan.length, dtype=torch.int64)
        if name.endswith(("embeds", "states", "latents", "features")):
            return self._embeddings()
        raise LookupError(f"no rule makes the required input {name!r}")

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _number(self, names: tuple[str, ...], default: int, kind: str = "") -> int:
        value = lookup(self.config, names, kind)
        if isinstance(value, (list, tuple)) and value:
            value = value[-1]
        if isinstance(value, dict):
            value = value.get("height", default)
        return int(value) if isinstance(value, (int, float)) and value > 0 else default

    def _ids(self) -> torch.Tensor:
        size = fit_special_tokens(self.config)
        allowed = [token for token in range(3, size) if token not in reserved(self.config)] or [0]
        picks = torch.randint(len(allowed), (self.plan.batch, self.plan.length), generator=self.generator)
        ids = torch.tensor(allowed)[picks]
        end = lookup(self.config, ("eos_token_id",), "text")
        if isinstance(end, int) and 0 <= end < size:
            ids[:, -1] = end  # models that pool at the end-of-text token look for one
        return ids

    def _decoder_ids(self) -> torch.Tensor:
        ids = self._ids()
        channels = lookup(self.config, ("num_codebooks", "num_channels"), "decoder")
        if isinstance(channels, int) and channels > 1 and lookup(self.config, ("delay_pattern",)) is not None:
            return ids[:, :, None].repeat(1, 1, channels) % 64
        return ids

    def _attention_mask(self) -> torch.Tensor:
        return torch.ones(self.plan.batch, self.plan.length, dtype=torch.int64)

    def _mask_for(self, name: str) -> torch.Tensor:
        if (
            "input_features" in self.signature.names
            and "feature" in name
            or "input_features" in self.signature.required
        ):
            features = self._features()
            frames = features.shape[1] if self.plan.audio == "time_mel" else features.shape[-1]
            return torch.ones(self.plan.batch, frames, dtype=torch.int64)
        if "pixel" in name:
            return torch.ones(self.plan.batch, *self._size(), dtype=torch.int64)
        return torch.ones(self.plan.batch, self.plan.length, dtype=torch.int64)

    def _size(self) -> tuple[int, int]:
        value = lookup(self.config, ("image_size", "img_size", "input_size"), "vision")
        if isinstance(value, (list, tuple)) and len(value) >= 2:
            return int(value[0]), int(value[1])
        if isinstance(value, dict) and "height" in value:
            return int(value["height"]), int(value["width"])
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        size = int(value) if isinstance(value, (int, float)) and 8 <= value <= 1024 else 64
        return size, size

    def _channels(self) -> int:
        value = self._number(("num_channels", "in_channels", "in_chans", "num_input_channels", "channels"), 3, "vision")
        return value if value <= 16 else 3

    def _pixels(self, layout: str) -> torch.Tensor:
        batch, channels, (height, width) = (self.plan.batch, self._channels(), self._size())
        patch = self._number(("patch_size",), 16, "vision")
        if layout == "video":
            return self._normal(batch, self._frames(), channels, height, width)
        if layout == "patches":
            time = self._number(("temporal_patch_size", "patch_temporal"), 1, "vision")
            return self._normal(batch * 16, channels * time * patch * patch)
        if layout == "flat":
            return self._normal(batch, 16, channels * patch * patch)
        return self._normal(batch, channels, height, width)

    def _frames(self) -> int:
        return self._number(("num_frames", "frames_per_clip", "video_length"), 4, "vision")

    def _grid(self) -> torch.Tensor:
        return torch.tensor([[1, 4, 4]]).repeat(self.plan.batch, 1)

    def _features(self) -> torch.Tensor:
        bins = self._number(("num_mel_bins", "feature_size", "input_feat_size", "input_dim", "input_size"), 80, "audio")
        frames = 2 * self._number(("max_source_positions", "max_position_embeddings"), 32, "audio")
        if self.plan.audio != "mel_full":
            frames = min(frames, 256) if lookup(self.config, ("max_source_positions",)) else 64
            frames = 4 * self._number(("n_window",), frames // 4, "audio")
        if self.plan.audio == "time_mel":
            return self._normal(self.plan.batch, frames, bins)
        return self._normal(self.plan.batch, bins, frames)

    def _wave(self) -> torch.Tensor:
        if self.plan.audio == "channel_wave":
            return self._normal(self.plan.batch, self._number(("audio_channels",), 1), 3840)
        if self.plan.audio == "spectrum":
            frames = self._number(("max_length",), 64)
            return self._normal(self.plan.batch, frames, self._number(("num_mel_bins",), 128))
        return self._normal(self.plan.batch, 4000)

    def _boxes(self) -> torch.Tensor:
        limit = self._number(("max_2d_position_embeddings",), 1000)
        corners = torch.randint(limit // 2, (self.plan.batch, self.plan.length, 2), generator=self.generator)
        return torch.cat([corners, corners + limit // 4], dim=-1)

    def _embeddings(self) -> torch.Tensor:
        return self._normal(self.plan.batch, self.plan.length, self._number(("hidden_size", "d_model"), 64))

    def _series(self, name: str) -> torch.Tensor:
        context = self._number(("context_length", "seq_length"), 32)
        lags = lookup(self.config, ("lags_sequence",)) or [0]
        ahead = self._number(("prediction_length",), 8)
        steps = ahead if name.startswith("future") else context + max(lags)
        channels = self._number(("num_input_channels", "input_size"), 1)
        if name.endswith("time_features"):
            return self._normal(self.plan.batch, steps, int(lookup(self.config, ("num_time_features",)) or 0))
        if channels == 1 and lookup(self.config, ("num_input_channels",)) is None:
            return self._normal(self.plan.batch, steps)
        return self._normal(self.plan.batch, steps, channels)

    def _noise(self) -> torch.Tensor:
        patch = self._number(("patch_size",), 16)
        height, width = self._size()
        return torch.rand(self.plan.batch, (height // patch) * (width // patch), generator=self.generator)

    def _place_tokens(self, inputs: dict[str, torch.Tensor], given: str, methods: tuple[str, ...], kind: str) -> None:
        """Put as many placeholders into the text as the model's own tower gives features for the input `given`.

        Where the configuration names no placeholder the features are added to the text, which gets their length.
        """
        method = next((getattr(self.model, name) for name in methods if hasattr(self.model, name)), None)
        if given not in inputs or method is None:
            return
        names = tuple(f"{prefix}_token_{suffix}" for prefix in kind.split() for suffix in ("id", "index"))
        token = lookup(self.config, names)
        wanted = inspect.signature(method).parameters
        if any(p.default is p.empty and p.kind < p.VAR_POSITIONAL and p.name not in inputs for p in wanted.values()):
            return
        with torch.no_grad():
            arguments = {name: value for name, value in inputs.items() if name in wanted and name != "input_ids"}
            features = method(**arguments)
        features = getattr(features, "pooler_output", features)
        if isinstance(features, (list, tuple)):
            features = torch.cat([part.reshape(-1, part.shape[-1]) for part in features])
        count = features.reshape(-1, features.shape[-1]).shape[0] // self.plan.batch
        ids = inputs["input_ids"]
        if token is None:
            if kind == "audio":
                inputs["input_ids"] = ids.repeat(1, -(-count // ids.shape[1]))[:, :count]
            return
        placeholders = torch.full((self.plan.batch, count), int(token), dtype=torch.int64)
        inputs["input_ids"] = torch.cat([ids[:, :2], placeholders, ids[:, 2:]], dim=1)
        if "mm_token_type_ids" in self.signature.names:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == int(token)).long()
