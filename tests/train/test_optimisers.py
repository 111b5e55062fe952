"""Which optimiser learns what."""

from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.language import Whole
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.schedule import Schedule

BLOCKS = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)


def test_muon_learns_matrices_between_hidden_states_and_adamw_what_reads_tokens_or_makes_logits() -> None:
    base = BaseArchitecture(
        blocks=BLOCKS, vocabulary_size=300, understanding_layers=1, fusion_layers=1, tied_embedding=False
    )
    pack = PackArchitecture(base_hidden_size=64, blocks=BLOCKS, layers=1, head_rank=8, vocabulary_size=300)
    model = Whole(Base(base), Pack(pack), 0, frozen_base=False)
    names = {id(value): name for name, value in model.named_parameters()}
    muon, adamw = (part for part, _ in Optimisers(model, Schedule(steps=1))._parts)
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert {"pack.input_adapter.weight", "pack.experts.layers.0.ffn.down.weight"} <= by_muon
    assert {"base.head.weight", "base.embedding.weight", "pack.head.up.weight", "base.norm.weight"} <= by_adamw
    assert by_muon | by_adamw == set(names.values())
