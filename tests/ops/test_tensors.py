"""The order of the channels and the memory layout, which all backends take from one place."""

import pytest
import torch

from sa_mmdet.ops.tensors import in_memory_format, memory_format, shuffle_channels, unshuffle_channels

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("channels", [2, 6, 64])
def test_the_shuffle_moves_each_channel_where_the_paper_says(channels: int) -> None:
    x = torch.randn(2, channels, 3, 4)
    shuffled = shuffle_channels(x)
    for c in range(channels):
        moved = 2 * c if c < channels // 2 else 2 * (c - channels // 2) + 1
        assert torch.equal(shuffled[:, moved], x[:, c])
    assert torch.equal(unshuffle_channels(shuffled), x)
    vector = torch.arange(channels)
    assert torch.equal(shuffle_channels(vector, dim=0), shuffle_channels(vector[None])[0])


def test_the_layout_of_a_feature_map() -> None:
    x = torch.randn(2, 8, 3, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert memory_format(x) == memory_format(x[:, ::2]) == torch.contiguous_format
    assert memory_format(last) == torch.channels_last
    assert memory_format(last[:, :, :1, :1].contiguous()) == torch.contiguous_format  # both layouts at once


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(2, 8, 3, 4), (1, 8, 1, 1), (2, 1, 3, 4), (2, 8, 1, 4), (0, 8, 3, 4)], ids=str)
def test_the_strides_are_those_of_a_new_tensor(size: tuple[int, ...], layout: torch.memory_format) -> None:
    n, c, h, w = size
    for x in (torch.randn(size), torch.randn(h, w, n, c).permute(2, 3, 0, 1), torch.randn(1, 1, 1, 1).expand(size)):
        found = in_memory_format(x, layout)
        assert found.is_contiguous(memory_format=layout)
        assert torch.equal(found, x)
        assert found.stride() == torch.empty(size, memory_format=layout).stride()
