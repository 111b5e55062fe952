"""A plan counts what a run then takes: parameters and files exactly, memory and time loosely."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_packs import BASE, BLOCKS, PACK, ROUTER
from torch.utils.flop_counter import FlopCounterMode

from modularbase_core.graph.networks import Base, Pack, Router
from modularbase_core.sdk.architecture import BaseArchitecture
from modularbase_core.train import measure, plan
from modularbase_core.train.align import PARTS
from modularbase_core.train.checkpoints import steps_done
from modularbase_core.train.costs import checkpoint_bytes, learns, memory_of, parts_of, shipped_bytes, step_flops
from modularbase_core.train.costs.memory import HEAD_ROWS
from modularbase_core.train.language import Loss, Whole, _HeadLoss
from modularbase_core.train.learn import schedule_of
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.plan import plan_recipe, shortfall
from modularbase_core.train.recipe import Recipe, Source

MIXED = replace(PACK, blocks=replace(BLOCKS, experts=4))
DELTA = replace(PACK, head_rank=8, vocabulary_size=BASE.vocabulary_size)
UNTIED = replace(BASE, tied_embedding=False)


def recipe_of(stage="base", **more):
    keys = {"architecture": BASE, "pack": PACK, "tokens": 10240, "batch_tokens": 1024, "windows": ((1.0, 128),)}
    return Recipe(**{"name": "tiny", "stage": stage, "compile": False, **keys, **more})


def model_of(recipe):
    model = Whole(Base(recipe.architecture), Pack(recipe.pack), 0, frozen_base=not recipe.learns_base)
    if recipe.stage == "base" and recipe.learns:
        model.learn_only(recipe.learns)
    if recipe.stage == "align":
        words = [word for part in recipe.learns or ("input",) for word in PARTS[part]]
        for name, value in model.pack.named_parameters():
            value.requires_grad_(any(word in name for word in words))
    return model


def batch_of(recipe, window):
    ids = torch.randint(1, 100, (recipe.batch_tokens // recipe.accumulate // window, window + 1))
    ids[:, ::40] = 0
    return ids, torch.ones_like(ids, dtype=torch.bool)


SOME = {"base": "b", "start": "p"}
RECIPES = {
    "base": recipe_of(),
    "pack": recipe_of("pack"),
    "chat": recipe_of("chat"),
    "adamw": recipe_of(optimiser="adamw"),
    "mixture": recipe_of(pack=MIXED),
    "a head's delta": recipe_of("pack", pack=DELTA),
    "a head of its own": recipe_of(architecture=UNTIED),
    "align": recipe_of("align"),
    "align more": recipe_of("align", learns=("output", "norms")),
    "fusion alone": recipe_of(learns=("fusion",), **SOME),
    "head alone, tied": recipe_of(learns=("head",), **SOME),
    "head alone": recipe_of(learns=("head",), architecture=UNTIED, **SOME),
    "understanding alone": recipe_of(learns=("understanding",), **SOME),
    "parts of a step": recipe_of("pack", accumulate=4),
    "fp32": recipe_of("pack", precision="fp32"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_and_which_of_them_learn_are_counted_exactly(name):
    recipe = RECIPES[name]
    model = model_of(recipe)
    parts = parts_of(recipe)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.learning for part in parts) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for key, value in model.named_parameters():
        assert learns(recipe, key) == value.requires_grad, key


def test_a_routers_parameters_are_counted_beside_its_base():
    recipe = recipe_of("router", router=ROUTER)
    router = next(part for part in parts_of(recipe) if part.name == "router")
    assert router.parameters == router.learning == sum(p.numel() for p in Router(ROUTER).parameters())
    assert sum(part.learning for part in parts_of(recipe)) == router.learning


def stepped(recipe, window):
    """Make one step; return the bytes that the way back was kept for, of the gradients and of the optimisers."""
    torch.manual_seed(0)
    model = model_of(recipe)
    loss_of, optimisers = (
        Loss(model, compiled=False, precision=recipe.precision),
        Optimisers(model, schedule_of(recipe), recipe.optimiser),
    )
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)  # held, so that its address is not given again
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = loss_of(*batch_of(recipe, window))
    held = sum(size for size, _ in kept.values())
    loss.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimisers.step(0)
    states = [value for part in optimisers.state_dict() for one in part["state"].values() for value in one.values()]
    return held, gradients, sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.ndim)


@pytest.mark.parametrize("name", RECIPES)
def test_memory_is_what_a_step_holds(name):
    recipe = RECIPES[name]
    held, gradients, states = stepped(recipe, 128)
    told = memory_of(recipe, 128)
    assert told.gradients == gradients
    assert told.optimiser == states
    assert told.weights == sum(p.nbytes for p in model_of(recipe).parameters())
    assert told.kept == pytest.approx(held, rel=0.2, abs=1e6)


def test_checkpointed_activations_and_parts_of_a_step_take_less():
    whole = memory_of(recipe_of(), 128)
    assert whole.checkpointed < whole.kept
    parts = memory_of(recipe_of(accumulate=4), 128)
    assert parts.kept < whole.kept
    assert whole.peak(checkpointed=True) <= whole.peak(checkpointed=False)
    # the gradients of earlier parts wait while a part's activations are kept
    assert parts.accumulates
    assert not whole.accumulates


def test_texts_count_while_they_are_read_and_afterwards():
    mix = (Source(files=("x",), tokens=10**7),)
    few, many = memory_of(recipe_of(), 128), memory_of(recipe_of(mix=mix, recall_tokens=10**6), 128)
    assert many.texts == 31 * 11 * 10**6
    assert many.peak(checkpointed=False) - few.peak(checkpointed=False) > many.texts


def test_the_head_is_walked_in_as_many_rows_as_are_counted():
    assert _HeadLoss.CHUNK_ROWS == HEAD_ROWS


def test_arithmetic_is_what_torch_counts():
    recipe = recipe_of(precision="fp32")
    model = model_of(recipe)
    with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
        Loss(model, compiled=False, precision="fp32")(*batch_of(recipe, 128)).backward()
    # attention's way back makes its scores once more
    assert step_flops(recipe, 128) == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert step_flops(recipe_of("pack"), 128) < step_flops(recipe_of(), 128)
    assert step_flops(recipe_of(checkpoint_activations=True), 128) > step_flops(recipe_of(), 128)
    assert step_flops(recipe_of(), 128) > step_flops(recipe_of(), 64)


def test_a_plan_tells_each_phase_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    recipe = recipe_of(windows=((0.5, 64), (0.5, 128)), accumulate=2)
    made = plan_recipe(recipe, tmp_path / "runs/deeper")
    assert [(one.window, one.steps) for one in made.phases] == [(64, 5), (128, 5)]
    assert all(one.step_seconds > 0 for one in made.phases)
    assert made.seconds == pytest.approx(sum(one.seconds for one in made.phases))
    assert made.flops == 5 * step_flops(recipe, 64) + 5 * step_flops(recipe, 128)
    assert made.free_disk > 0
    assert shortfall(made) is None
    assert not list(tmp_path.iterdir())
    assert plan_recipe(recipe, tmp_path, measured=False).seconds is None


@pytest.mark.parametrize("stage", ["router", "pack", "align"])
def test_every_kind_of_stage_is_timed(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    recipe = recipe_of(stage, router=ROUTER, batch_tokens=128, tokens=256)
    made = plan_recipe(recipe, tmp_path)
    assert made.seconds > 0
    assert made.learning < made.parameters


LARGE = {"batch_tokens": 65536, "tokens": 65536}


@pytest.mark.parametrize(
    ("more", "share", "told"),
    [
        ({}, 0.1, "train a smaller network in shorter windows, or where there is more memory"),
        (LARGE, 0.9, "set checkpoint_activations = true"),
        ({**LARGE, "checkpoint_activations": True}, 0.9, "set accumulate = 2"),
        (
            {"mix": (Source(files=("x",), tokens=10**8),)},
            0.2,
            "make shards of its texts with `modularbase data prepare`",
        ),
        ({"stage": "router", "router": ROUTER}, 0.5, "lower the messages of its mix, or its batch_tokens"),
    ],
)
def test_too_little_memory_is_told_with_what_to_do_and_nothing_is_run(tmp_path, monkeypatch, more, share, told):
    recipe = recipe_of(**more)
    needed = plan_recipe(recipe, tmp_path, measured=False).peak_bytes
    monkeypatch.setattr(plan, "free_memory", lambda **more: int(share * needed))
    monkeypatch.setattr(measure, "measure", None)
    made = plan_recipe(recipe, tmp_path)
    reason = shortfall(made)
    assert reason.startswith("recipe 'tiny' needs about ")
    assert reason.endswith(f" are free; {told}")
    assert made.seconds is None


def test_the_parts_that_are_named_make_it_fit(tmp_path, monkeypatch):
    recipe = recipe_of(**LARGE)
    free = int(1.1 * memory_of(replace(recipe, accumulate=16), 128).peak(checkpointed=True))
    monkeypatch.setattr(plan, "free_memory", lambda **more: free)
    told = re.search(r"; set accumulate = (\d+)$", shortfall(plan_recipe(recipe, tmp_path)))
    assert memory_of(replace(recipe, accumulate=int(told[1])), 128).peak(checkpointed=False) <= free
    assert memory_of(replace(recipe, accumulate=int(told[1]) // 2), 128).peak(checkpointed=False) > free


def test_too_little_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda **more: None)
    made = replace(plan_recipe(recipe_of(), tmp_path, measured=False), free_disk=1000)
    assert shortfall(made).startswith(
        "recipe 'tiny' needs 14 MB of disk while a checkpoint is written, but 0 MB are free"
    )


def test_free_memory_heeds_the_group_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(plan, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(plan, "_GROUP", tmp_path)
    assert plan.free_memory(gpu=False) == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300000\n")
    assert plan.free_memory(gpu=False) == 1_024_000
    (tmp_path / "memory.max").write_text("500000\n")
    assert plan.free_memory(gpu=False) == 200_000
    monkeypatch.setattr(plan, "_MEMINFO", tmp_path / "none")
    assert plan.free_memory(gpu=False) is None


@pytest.mark.parametrize("form", ["int8", "int4", "fp16", "fp32"])
def test_files_are_as_large_as_told(tmp_path, form):
    from modularbase_core.device.weights import write_weights
    from modularbase_core.train.loop import Settings, train

    recipe = replace(recipe_of("pack"), dtype=form)
    model, path = model_of(recipe), tmp_path / "c.pt"
    settings = Settings(logs=("none",))
    batches = lambda step: iter([batch_of(recipe, 128)] * 2)  # noqa: E731
    loss = Loss(model, compiled=False)
    train(model, loss, batches, replace(schedule_of(recipe), steps=2), path, settings=settings, quiet=True)
    assert steps_done(path) == 2
    assert checkpoint_bytes(recipe) == pytest.approx(path.stat().st_size, rel=0.05)
    weights = {name: value.detach().numpy() for name, value in model.pack.state_dict().items()}
    write_weights(tmp_path / "w.safetensors", weights, form=form)
    assert shipped_bytes(recipe) == pytest.approx((tmp_path / "w.safetensors").stat().st_size, rel=0.05)


def test_a_large_network_is_planned_without_being_made(tmp_path):
    large = replace(BLOCKS, hidden_size=4096, heads=32, kv_heads=8, head_size=128, ffn_size=14336)
    base = BaseArchitecture(blocks=large, vocabulary_size=128_256, understanding_layers=6, fusion_layers=2)
    recipe = recipe_of(architecture=base, pack=replace(PACK, base_hidden_size=4096, blocks=large, layers=24))
    made = plan_recipe(recipe, tmp_path, measured=False)
    assert made.parameters == pytest.approx(7.5e9, rel=0.1)
    assert made.peak_bytes > 60e9
