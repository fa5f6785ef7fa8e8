"""Recovery learns, is the same every time, survives kills, and refuses what it can't use."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.errors import InputError
from espalier.ir import Builder, Graph, TensorType, dims, elements
from espalier.ir.execute import run
from espalier.ir.types import parse
from espalier.train.augment import CropAndFlip
from espalier.train.hooks import Hook
from espalier.train.loops import Run, Settings
from espalier.train.objectives import cross_entropy, supervised
from espalier.train.recover import recover, reestimate_statistics
from espalier.train.schedule import learning_rate_at
from tests.train.networks import classifier, images, same_bits, weights
from tests.train.runs import ended, read, slowly, start, together

X = images(128)
TEACHER = classifier(1)
SCORES = run(TEACHER, [X])[0]
LABELS = (SCORES - np.median(SCORES, axis=0)).argmax(1)


def distance(graph: Graph) -> float:
    found, wanted = run(graph, [X])[0], run(TEACHER, [X])[0]
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


def accuracy(graph: Graph) -> float:
    return float((run(graph, [X])[0].argmax(1) == LABELS).mean())


def refused(code: str, data: Any = None, original: Graph | None = TEACHER, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        recover(classifier(), original, {"image": X} if data is None else data, **{"steps": 1, **options})
    assert caught.value.code == code
    return caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize("options", [{"optimizer": "sgd", "learning_rate": 0.05}, {"optimizer": "adamw", "inner": 0.1}])
def test_imitation_needs_no_labels(options: Any) -> None:
    graph = classifier()
    before, bits = distance(graph), [w.tobytes() for w in weights(graph)]
    rate = options.pop("learning_rate", 0.01)
    found = recover(graph, TEACHER, {"image": X}, epochs=10, batch_size=16, learning_rate=rate, clip=5.0, **options)
    assert distance(found) < 0.15 * before
    assert [w.tobytes() for w in weights(graph)] == bits  # what was given stays as it was


def test_labels_are_learned() -> None:
    data = {"image": X, "labels": LABELS}
    found = recover(classifier(), None, data, epochs=20, batch_size=16, learning_rate=0.1)
    assert accuracy(found) > 0.8 > 0.5 > accuracy(classifier())
    mixed = recover(classifier(), TEACHER, data, epochs=20, batch_size=16, learning_rate=0.1, imitate=0.5)
    assert distance(mixed) < distance(found) and accuracy(mixed) < accuracy(found)
    ignored = recover(classifier(), TEACHER, data, steps=3, batch_size=16, labels=False)
    assert same_bits(ignored, recover(classifier(), TEACHER, {"image": X}, steps=3, batch_size=16))


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_cross_entropy_however_labels_and_scores_are_written_down(shape: tuple[int, ...]) -> None:
    scores = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.arange(5 * int(np.prod(shape[:-1]))).reshape(5, *shape[:-1]) % 3
    one_hot = torch.nn.functional.one_hot(classes, 3)
    wanted = torch.nn.functional.cross_entropy(scores.movedim(-1, 1), classes, reduction="none").reshape(5, -1).mean(1)
    for labels in (classes, classes.double(), one_hot, one_hot.bool(), one_hot.double()):
        for given in (scores, scores.softmax(-1)):
            torch.testing.assert_close(cross_entropy(given, labels), wanted)
            if labels.ndim == scores.ndim or not labels.is_floating_point():  # other floats are numbers to learn
                torch.testing.assert_close(supervised(given, labels), wanted.mean())
    soft = scores.softmax(-1).flip(0)
    torch.testing.assert_close(cross_entropy(scores, soft).mean(), -(soft * scores.log_softmax(-1)).sum(-1).mean())
    masked = torch.where(one_hot.roll(1, -1) > 0, -torch.inf, scores)  # but not what is right
    torch.testing.assert_close(cross_entropy(masked, one_hot.double()), cross_entropy(masked, classes))
    for wrong in (classes + 3, classes - 1, classes + 0.5, one_hot * 2, one_hot * 0.7, classes[:2]):
        with pytest.raises(InputError) as caught:
            cross_entropy(scores, wrong)
        assert caught.value.code == "E206"


def test_numbers_are_learned_too() -> None:
    graph = Graph("line")
    x = graph.add_input(parse("f32[n, 3]"), "x")
    b = Builder(graph)
    graph.set_outputs([b.gemm(x, np.ones((3, 1), "f4") / 2, np.zeros(1, "f4"))], ["y"])
    data = np.random.default_rng(0).standard_normal((256, 3)).astype("f4")
    wanted = (data @ np.array([1, -2, 3], "f4")).astype("f4")
    options = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    found = recover(graph, None, {"x": data, "labels": wanted}, epochs=10, batch_size=32, **options)
    np.testing.assert_allclose(weights(found)[0].reshape(-1), [1, -2, 3], atol=1e-2)


def test_the_seed_decides_everything() -> None:
    def once(seed: int) -> Graph:
        options = {"steps": 6, "batch_size": 16, "augment": CropAndFlip(1)}
        return recover(classifier(), TEACHER, {"image": X}, seed=seed, **options)

    state = torch.get_rng_state()
    first, second, other = once(0), once(0), once(1)
    assert same_bits(first, second) and not same_bits(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_in_bf16_ends_near_that_in_f32() -> None:
    options = {"steps": 30, "batch_size": 32, "learning_rate": 0.02}
    start, plain, narrow = (
        classifier(),
        *(
            recover(classifier(), None, {"image": X, "labels": LABELS}, precision=precision, **options)
            for precision in ("f32", "bf16")
        ),
    )
    for before, a, b in zip(weights(start), weights(plain), weights(narrow), strict=True):
        assert b.dtype == a.dtype
        assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(a - before) + 1e-6
    assert not same_bits(plain, narrow)


class Stop(Exception):
    """A kill, for tests within one process."""


class Shrink(Hook):
    """A regulariser with a state, that stops the process when it is told to."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.seen = stop, torch.zeros(1)

    def identity(self) -> dict[str, Any]:
        return {}  # a run that was stopped goes on as one that is stopped later

    def loss(self, run: Run) -> torch.Tensor:
        return 1e-3 * (1 + self.seen) * sum((p**2).sum() for p in run.module.parameters())

    def after_update(self, run: Run) -> None:
        self.seen += 0.1
        if run.step == self.stop:
            raise Stop

    def state(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def restore(self, state: Any) -> None:
        self.seen.copy_(state["seen"])


def stream() -> Any:
    for first in range(0, 128, 16):
        yield (X[first : first + 16],), LABELS[first : first + 16]


class Wobbling(torch.utils.data.Dataset[Any]):
    """Samples with noise that is drawn anew each time."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, position: int) -> Any:
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        return (X[position] * np.float32(1 + 0.01 * noise),), LABELS[position]


@pytest.mark.parametrize("kind", ["arrays", "batches", "loader"])
@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "f32"), ("adamw", "f32"), ("sgd", "bf16")])
def test_resuming_ends_with_the_same_bits(kind: str, optimizer: str, precision: str, tmp_path: Path) -> None:
    def once(folder: Path | None, stop: int = 0) -> Graph:
        loader = torch.utils.data.DataLoader(Wobbling(), batch_size=16, shuffle=True)
        data = {"arrays": {"image": X, "labels": LABELS}, "batches": list(stream()), "loader": loader}[kind]
        options: Any = {"batch_size": 16, "optimizer": optimizer, "precision": precision, "augment": CropAndFlip(1)}
        options["hooks"] = [Shrink(stop)]
        return recover(classifier(), TEACHER, data, steps=21, imitate=0.5, checkpoint=folder, every_steps=3, **options)

    whole = once(None)
    for stop in (2, 11, 20):
        with pytest.raises(Stop):
            once(tmp_path, stop)
    assert same_bits(once(tmp_path), whole)
    assert same_bits(once(tmp_path, 21), whole)  # it is done: nothing is left to stop


def test_kills_change_nothing(tmp_path: Path) -> None:
    whole = start(slowly, tmp_path / "whole", tmp_path / "whole.npz")
    written = tmp_path / "killed" / "checkpoint.safetensors"
    for kill in range(2):
        before = written.stat().st_mtime_ns if written.exists() else 0
        process = start(slowly, tmp_path / "killed", tmp_path / "killed.npz")
        deadline = time.monotonic() + 60
        while not written.exists() or written.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.01)
        time.sleep(random.Random(kill).uniform(0, 0.1))
        process.kill()
        assert ended(process) == -signal.SIGKILL and not (tmp_path / "killed.npz").exists()
    last = start(slowly, tmp_path / "killed", tmp_path / "killed.npz")
    for process in (whole, last):
        assert ended(process) == 0
    pairs = list(zip(read(tmp_path / "whole.npz"), read(tmp_path / "killed.npz"), strict=True))
    assert pairs and all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    data = {"image": X}
    recover(classifier(), TEACHER, data, steps=2, batch_size=16, checkpoint=tmp_path)
    for change in ({"graph": classifier(5)}, {"original": classifier(5)}, {"data": {"image": X + 1}}, {"seed": 3}):
        given: dict[str, Any] = {"graph": classifier(), "original": TEACHER, "data": data, "seed": 0, **change}
        graph, original, other = (given.pop(name) for name in ("graph", "original", "data"))
        before = (tmp_path / "checkpoint.safetensors").read_bytes()
        with pytest.raises(InputError, match="belongs to a run that differs") as caught:
            recover(graph, original, other, steps=2, batch_size=16, checkpoint=tmp_path, **given)
        assert caught.value.code == "E232" and next(iter(change)) in caught.value.message
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


class Pull(Hook):
    """A hook with options."""

    def __init__(self, strength: Any, module: Any = None) -> None:
        self.strength, self.module, self.seen = strength, module, torch.zeros(1)


def test_checkpoints_of_hooks_with_other_options_are_refused(tmp_path: Path) -> None:
    def once(hook: Hook) -> Graph:
        options: Any = {"batch_size": 16, "hooks": [hook, lambda run: None], "checkpoint": tmp_path}
        return recover(classifier(), TEACHER, {"image": X}, steps=1, **options)

    options = {"a": (1, 2.5, None), "b": [True, {3: "c"}]}
    done = once(Pull(options, torch.nn.Identity()))
    assert same_bits(once(Pull(dict(options), torch.nn.Flatten())), done)
    for other in (0.1, {**options, "a": (1, 2.5, 0)}, {**options, "b": [True, {3: "d"}]}):
        with pytest.raises(InputError, match="belongs to a run that differs in hooks") as caught:
            once(Pull(other, torch.nn.Identity()))
        assert caught.value.code == "E232"
    with pytest.raises(InputError, match="differs in hooks"):
        once(Shrink())


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"x" * 1000])
def test_damaged_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    assert "damaged" in refused("E232", checkpoint=tmp_path)


def test_checkpoints_are_written_whole(tmp_path: Path) -> None:
    stale = tmp_path / ".checkpoint.safetensors.1"
    stale.write_bytes(b"half of one")
    recover(classifier(), TEACHER, {"image": X}, steps=2, batch_size=16, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_bad_data_and_options_are_refused() -> None:
    assert "NaN" in refused("E206", {"image": X * np.nan})
    assert "(128, 3, 8, 7)" in refused("E206", {"image": X[..., :7]})
    assert "'image'" in refused("E206", {"other": X})
    assert "0 to 4" in refused("E206", {"image": X, "labels": np.arange(128) % 5})
    assert "127 labels" in refused("E206", {"image": X, "labels": LABELS[:127]})
    assert "no labels" in refused("E206", labels=True)
    assert "NaN" in refused("E206", {"image": X, "labels": np.full(128, np.nan)})
    refused("E212", original=None)
    refused("E212", imitate=0.5)
    refused("E201", epochs=1)
    refused("E201", steps=-1)
    refused("E201", learning_rate=0.0)
    refused("E201", temperature=0)
    refused("E201", precision="f16")
    assert "learning_rate" in refused("E201", rate=1)
    refused("E201", device="cuda:7")
    refused("E226", trainable=lambda value: False)


def test_divergence_is_an_error_and_not_a_result(tmp_path: Path) -> None:
    refused("E231", steps=40, learning_rate=1e30, batch_size=16, checkpoint=tmp_path, every_steps=1, distance="mse")


def test_fixed_batches(tmp_path: Path) -> None:
    fixed = classifier(batch="4")
    found = recover(fixed, classifier(1, batch="4"), {"image": X}, steps=3, batch_size=16)  # nothing depends on it
    assert same_bits(found, recover(classifier(), TEACHER, {"image": X}, steps=3, batch_size=16))
    graph = Graph("flat")
    x = graph.add_input(parse("f32[2, 6]"), "x")
    b = Builder(graph)
    graph.set_outputs([b.softmax(b.reshape(b.matmul(x, np.eye(6, dtype="f4")), np.array([2, 6])))], ["y"])
    with pytest.raises(InputError, match="fixed batch of 2"):
        recover(graph, graph, {"x": np.ones((8, 6), "f4")}, steps=1, batch_size=4)
    recover(graph, graph, {"x": np.ones((8, 6), "f4")}, steps=1, batch_size=2)


def test_statistics_become_those_of_the_data() -> None:
    data, graph = images(512, seed=3) * 2 + 1, classifier()
    found = reestimate_statistics(graph, {"image": data}, batch_size=64)
    norm = next(node for node in found if node.op.moves_on)
    seen: list[Any] = []
    run(graph, [data], observe=lambda node, results: seen.append(results[0]) if node.op.contracts else None)
    mean, variance = (norm.operand(k).constant.array for k in (3, 4))
    np.testing.assert_allclose(mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(variance, seen[0].var((0, 2, 3)), rtol=1e-2)
    kept = {w.tobytes() for w in weights(graph) if w.ndim > 1}
    assert {w.tobytes() for w in weights(found) if w.ndim > 1} == kept


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 1.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates == [*rates[:11], *sorted(rates[11:], reverse=True)]


def test_decay_spares_norms_and_biases() -> None:
    groups: list[Any] = []

    def look(run: Run) -> None:
        groups.extend(run.optimizer.param_groups)

    recover(classifier(), TEACHER, {"image": X}, steps=1, batch_size=16, hooks=[look])
    assert [(g["weight_decay"] > 0, {p.ndim for p in g["params"]}) for g in groups] == [(True, {2, 4}), (False, {1})]


def test_settings_can_be_shared() -> None:
    settings = Settings(steps=2, batch_size=16)
    a = recover(classifier(), TEACHER, {"image": X}, settings=settings, seed=2)
    assert same_bits(a, recover(classifier(), TEACHER, {"image": X}, steps=2, batch_size=16, seed=2))
    with pytest.raises(InputError, match="settings already"):
        recover(classifier(), TEACHER, {"image": X}, settings=settings, steps=2)


HUNG = -9
"""The status of a process that was killed because it did not end."""


def free_port() -> int:
    """A port that nobody listens on, outside of those that connections get by themselves."""
    for port in np.random.default_rng().integers(20_000, 32_000, 100).tolist():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(port)
    raise OSError("no port is free")


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    found = []
    for again in range(2):  # the second time from the checkpoint that rank 0 wrote
        outputs = [tmp_path / f"{again}.{rank}.npz" for rank in range(2)]
        for _ in range(3):  # Gloo's sockets now and then never find each other on a busy machine
            port = free_port()
            processes = [start(together, rank, port, tmp_path / "run", outputs[rank]) for rank in range(2)]
            ends = [ended(process, 90.0) for process in processes]
            if ends[0] != HUNG or any(output.exists() for output in outputs):
                break
        assert ends == [0, 0]
        found += [b"".join(array.tobytes() for array in read(output)) for output in outputs]
    assert len(set(found)) == 1
    alone = recover(classifier(), TEACHER, {"image": X}, steps=8, batch_size=16)
    apart = [float(np.abs(a - b).max()) for a, b in zip(weights(alone), read(outputs[0]), strict=True)]
    assert max(apart) < 0.1  # the same but for the statistics, which each process takes over its half of a batch


def test_models_in_half_precision_learn() -> None:
    graph = Graph("half")
    b = Builder(graph)
    draw = np.random.default_rng(0)
    x = graph.add_input(TensorType(elements.F16, (dims.symbol("n"), 6)), "x")
    hidden = b.relu(b.matmul(x, draw.normal(size=(6, 16)).astype(np.float16)))
    graph.set_outputs([b.matmul(hidden, (0.3 * draw.normal(size=(16, 4))).astype(np.float16))], ["y"])
    inputs, labels = draw.normal(size=(64, 6)).astype(np.float16), np.arange(64) % 4
    losses: list[float] = []
    recover(
        graph, None, {"x": inputs, "labels": labels}, steps=60, batch_size=64, learning_rate=1e-2,
        hooks=[lambda run: losses.append(float(run.loss))],
    )  # fmt: skip
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
