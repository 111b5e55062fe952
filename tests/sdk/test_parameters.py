import dataclasses

import pytest
from tiny_packs import BASE, BLOCKS, PACK, ROUTER

from modularbase_core.graph.networks import build_network
from modularbase_core.sdk.parameters import parameter_shapes

MIXTURE = dataclasses.replace(BLOCKS, experts=4, qkv_bias=True)


@pytest.mark.parametrize(
    "architecture",
    [
        BASE,
        dataclasses.replace(BASE, tied_embedding=False, fusion_layers=2),
        PACK,
        dataclasses.replace(PACK, blocks=MIXTURE, base_hidden_size=48, layers=2),
        dataclasses.replace(PACK, blocks=dataclasses.replace(MIXTURE, activation="gelu")),
        dataclasses.replace(PACK, blocks=dataclasses.replace(BLOCKS, activation="geglu")),
        dataclasses.replace(PACK, head_rank=8, vocabulary_size=300),
        ROUTER,
    ],
)
def test_the_listed_parameters_are_those_of_the_network(architecture):
    state = build_network(architecture).state_dict()
    assert list(parameter_shapes(architecture).items()) == [(name, tuple(value.shape)) for name, value in state.items()]
