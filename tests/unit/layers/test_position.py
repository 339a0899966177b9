import math

import pytest
import torch

from scaledl.layers.position import RotaryEmbedding

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}


def scores(rope: RotaryEmbedding, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    q, k = rope(q, k, positions)
    return q @ k.transpose(-1, -2)


def test_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 3, 7, 16).unbind(0)
    rope, positions = RotaryEmbedding(16), torch.arange(7)
    here, far = scores(rope, q, k, positions), scores(rope, q, k, positions + 100)
    torch.testing.assert_close(here, far, atol=1e-4, rtol=0)
    assert (here - scores(rope, q, k, positions * 2)).abs().max() > 0.1


def test_rotation_is_the_complex_product() -> None:
    x, positions = torch.randn(5, 8), torch.tensor([0, 1, 2, 257, 1001])  # bf16 has no 257 and no 1001
    rotated, _ = RotaryEmbedding(8, base=100.0)(x, x, positions)
    for m, position in enumerate(positions.tolist()):
        for i in range(4):
            pair = complex(x[m, i], x[m, i + 4]) * complex(
                math.cos(position * 100.0 ** (-i / 4)), math.sin(position * 100.0 ** (-i / 4))
            )
            assert complex(rotated[m, i], rotated[m, i + 4]) == pytest.approx(pair, abs=1e-3)


def test_angles_stay_exact_in_bf16() -> None:
    q = torch.randn(1, 4096, 16).bfloat16()
    rope, positions = RotaryEmbedding(16).bfloat16(), torch.arange(4096)
    low, _ = rope(q, q, positions)
    exact, _ = rope(q.float(), q.float(), positions)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, exact.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_frequencies_equal_those_of_transformers(scaling: dict[str, float] | None, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    if scaling is not None:
        rope |= {key: scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor")}
        rope |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=131_072, rope_parameters=rope)
    ours = RotaryEmbedding(128, 500_000.0, scaling).frequencies()
    torch.testing.assert_close(ours, LlamaRotaryEmbedding(config).inv_freq, rtol=1e-6, atol=0)
    if scaling is not None:
        assert (RotaryEmbedding(128, 500_000.0).frequencies() / ours).max() == pytest.approx(8.0)


def test_errors_name_value_and_way_out() -> None:
    with pytest.raises(ValueError, match=r"head_dim=5 is odd.*even head_dim"):
        RotaryEmbedding(5)
    with pytest.raises(ValueError, match=r"\['factor'\].*low_freq_factor.*null"):
        RotaryEmbedding(8, scaling={"factor": 8.0})
