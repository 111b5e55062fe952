import json
from pathlib import Path

import pytest
from qwen2_directory import CONFIG

from modularbase_core.errors import ArchitectureError
from modularbase_core.train.pretrained.config import Described, divide, read_config


def read(tmp_path: Path, *without: str, **changes: object) -> Described:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if key not in without}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path)


def test_a_configuration_is_read_in_our_terms(tmp_path: Path) -> None:
    got = read(tmp_path)
    assert (got.layers, got.vocabulary_size, got.tied, got.longest) == (4, 320, True, 512)
    blocks = got.blocks
    assert (blocks.hidden_size, blocks.heads, blocks.kv_heads, blocks.head_size, blocks.ffn_size) == (64, 2, 1, 32, 96)
    assert (blocks.rope_theta, blocks.norm_epsilon, blocks.qkv_bias) == (1e6, 1e-6, True)


def test_what_a_configuration_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    got = read(tmp_path, "rope_theta", "rms_norm_eps", "num_key_value_heads", "tie_word_embeddings", "architectures")
    assert (got.blocks.rope_theta, got.blocks.norm_epsilon, got.blocks.kv_heads, got.tied) == (10000.0, 1e-6, 2, False)


def test_rope_as_newer_configurations_spell_it(tmp_path: Path) -> None:
    parameters = {"rope_theta": 500000, "rope_type": "default"}
    assert read(tmp_path, "rope_theta", rope_parameters=parameters).blocks.rope_theta == 500000.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen3"}, "model_type is 'qwen3'; only 'qwen2' is read"),
        ({"model_type": None}, "model_type is None; only 'qwen2' is read"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "only Qwen2ForCausalLM, which talks, is read"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is read"),
        ({"quantization_config": {"quant_method": "awq"}}, "the checkpoint is quantised; name the one"),
        ({"use_sliding_window": True}, "sliding-window attention is switched on"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention is switched on"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, r"positions are scaled \('yarn'\)"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, r"positions are scaled \('linear'\)"),
        ({"rope_scaling": 4}, "rope_scaling is 4; expected an object"),
        ({"num_attention_heads": 4}, "head_size is 16; use a multiple of 32"),
        ({"num_attention_heads": 3}, "hidden_size 64 is not a multiple of num_attention_heads 3"),
        (
            {"num_attention_heads": 3, "head_dim": 32, "num_key_value_heads": 2},
            "heads 3 is not a multiple of kv_heads 2",
        ),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a positive whole number"),
        ({"hidden_size": 1 << 20, "num_attention_heads": 1 << 10}, "is 1048576; the largest is"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True; expected a number"),
        ({"rope_theta": -1}, "rope_theta is -1.0; it must be positive and finite"),
    ],
)
def test_what_we_do_not_run_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(ArchitectureError, match=told) as caught:
        read(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder_and_a_folder_may_hold_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ArchitectureError, match="x is no folder; name one that holds a checkpoint"):
        read_config(tmp_path / "x")
    with pytest.raises(ArchitectureError, match=r"holds no config\.json; name a folder in the layout"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ArchitectureError, match="is no object"):
        read_config(tmp_path)


@pytest.mark.parametrize(("understanding", "fusion"), [(2, 2), (4, 1), (0, 1), (1, 0), (-1, 2)])
def test_every_part_has_a_layer_at_least(tmp_path: Path, understanding: int, fusion: int) -> None:
    with pytest.raises(ArchitectureError, match=r"the checkpoint has 4 layers; .* each needs one at least"):
        divide(read(tmp_path), understanding_layers=understanding, fusion_layers=fusion)


def test_layers_and_window_are_divided(tmp_path: Path) -> None:
    base, pack = divide(read(tmp_path), understanding_layers=1, fusion_layers=2)
    assert (base.understanding_layers, pack.layers, base.fusion_layers) == (1, 1, 2)
    assert base.window == pack.window
    assert (base.window.trained_tokens, base.window.recall_tokens) == (512, 64)
    base, _ = divide(read(tmp_path, max_position_embeddings=32768), understanding_layers=1, fusion_layers=1)
    assert (base.window.trained_tokens, base.window.block_tokens, base.window.recall_tokens) == (4096, 256, 512)


@pytest.mark.parametrize("tokens", [0, 64, 130, 528])
def test_a_window_that_does_not_go_with_the_checkpoint_is_refused(tmp_path: Path, tokens: int) -> None:
    with pytest.raises(ArchitectureError, match="use a multiple of 16 from 128 to 512"):
        divide(read(tmp_path), understanding_layers=1, fusion_layers=1, window_tokens=tokens)
