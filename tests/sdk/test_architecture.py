import dataclasses

import pytest
from tiny_packs import BASE, BLOCKS, PACK, ROUTER, WINDOW

from modularbase_core.errors import ArchitectureError
from modularbase_core.sdk.architecture import (
    LARGEST,
    architecture_from_dict,
    architecture_key,
    architecture_to_dict,
    hidden_width,
    layer_count,
)

KEYS = ["767a4850421d3cea", "6a4af7d31691cd50", "35a7fc566aecd497"]
"""Those that manifests were written with before blocks had an activation."""


@pytest.mark.parametrize("architecture", [BASE, PACK, ROUTER])
def test_an_architecture_survives_json_and_keeps_its_key(architecture):
    back = architecture_from_dict(architecture_to_dict(architecture))
    assert back == architecture
    assert architecture_key(back) == architecture_key(architecture)


def test_a_field_that_came_later_changes_no_key_where_it_is_left_alone():
    assert [architecture_key(one) for one in (BASE, PACK, ROUTER)] == KEYS
    gelu = dataclasses.replace(PACK, blocks=dataclasses.replace(BLOCKS, activation="gelu"))
    headed = dataclasses.replace(PACK, head_rank=8, vocabulary_size=BASE.vocabulary_size)
    assert len({architecture_key(one) for one in (gelu, headed, PACK)}) == 3
    assert architecture_from_dict(architecture_to_dict(gelu)) == gelu


def test_depth_and_width_are_those_of_the_network():
    assert [(layer_count(one), hidden_width(one)) for one in (BASE, PACK, ROUTER)] == [(2, 64), (1, 64), (None, 32)]


@pytest.mark.parametrize(
    ("described", "changes", "told"),
    [
        (WINDOW, {"trained_tokens": 0}, "trained_tokens is 0; it must be positive"),
        (WINDOW, {"block_tokens": 40}, r"window\.block_tokens is 40; use a multiple of 16"),
        (WINDOW, {"recent_tokens": 112}, "is 160, more than trained_tokens 128; lower recent_tokens or block_tokens"),
        (BLOCKS, {"kv_heads": 3}, "heads 2 is not a multiple of kv_heads 3"),
        (BLOCKS, {"head_size": 40}, "head_size is 40; use a multiple of 32"),
        (BLOCKS, {"experts": -1}, "experts is -1; it must be at least 0"),
        (BLOCKS, {"experts": 2, "experts_per_token": 3}, r"experts_per_token 3 is not in 1\.\.2"),
        (BLOCKS, {"activation": "glu"}, r"activation is 'glu'; use one of swiglu, geglu, gelu \(did you mean"),
        (BLOCKS, {"norm_epsilon": 0.0}, "norm_epsilon is 0.0; it must be positive and finite"),
        (BLOCKS, {"rope_theta": float("inf")}, "rope_theta is inf; it must be positive and finite"),
        (PACK, {"layers": LARGEST["layers"] + 1}, "layers is 513; the largest is 512"),
        (PACK, {"head_rank": 8}, "head_rank is 8 and vocabulary_size 0; give both, or neither"),
        (ROUTER, {"heads": 3}, "width 32 is not a multiple of heads 3"),
    ],
)
def test_sizes_that_make_no_network_are_told(described, changes, told):
    with pytest.raises(ArchitectureError, match=told):
        dataclasses.replace(described, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer": 2}, r"architecture has the unknown key 'layer' \(did you mean 'layers'\?\)"),
        ({"layers": True}, r"architecture\.layers is True; expected int"),
        ({"blocks": None}, r"architecture\.blocks is None; expected Blocks"),
        ({"blocks": {}}, r"architecture\.blocks lacks 'hidden_size'"),
        ({"kind": None}, r"architecture\.kind is None; use one of base, pack, router"),
    ],
)
def test_a_description_that_is_misspelt_is_told(changes, told):
    with pytest.raises(ArchitectureError, match=told):
        architecture_from_dict({**architecture_to_dict(PACK), **changes})


def test_whole_numbers_stand_for_real_ones_unless_they_are_beyond_them():
    plain = architecture_to_dict(PACK)
    whole = {**plain, "blocks": {**plain["blocks"], "rope_theta": 10000}}
    assert architecture_key(architecture_from_dict(whole)) == architecture_key(PACK)
    huge = {**plain, "blocks": {**plain["blocks"], "rope_theta": 10**400}}
    with pytest.raises(ArchitectureError, match="rope_theta is inf"):
        architecture_from_dict(huge)
