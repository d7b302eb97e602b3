"""A training with frozen layers that were never loaded is warned of, and no other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from toy_training import Recorder, Toy, runner


class Detector(Toy):
    def __init__(self, **backbone: Any) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(depth=18, base_channels=8, **backbone))

    def forward(self, inputs: Any, mode: str) -> Any:
        features = self.backbone(torch.ones(2, 3, 32, 32))
        return dict(loss=super().forward(inputs, mode)["loss"] + features[-1].square().mean())


def said(caplog: pytest.LogCaptureFixture, folder: Path, options: dict[str, Any], **training: Any) -> list[str]:
    built = runner(
        folder, Recorder(), model=Detector(**options), train_cfg=dict(by_epoch=True, max_epochs=1), **training
    )
    built.logger.addHandler(caplog.handler)
    caplog.clear()
    with caplog.at_level("WARNING"):
        built.train()
    return [message for message in caplog.messages if "are frozen with the values" in message]


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize(
    ("options", "count"),
    [
        (dict(type="SAResNet", groups=4, frozen_stages=1, norm_eval=True), 5),
        (dict(type="ResNet", frozen_stages=0, norm_eval=True), 1),
        (dict(type="ResNet", norm_cfg=dict(type="BN", requires_grad=False), norm_eval=True), 20),
    ],
    ids=str,
)
def test_random_frozen_layers_are_told_once(
    options: dict[str, Any], count: int, flexible: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [message] = said(caplog, tmp_path, options, flexible=flexible)
    assert message.startswith(
        f"{count} batch norms are frozen with the values with which a network is built (backbone."
    )
    assert "frozen_stages=-1, norm_eval=False" in message


def test_loaded_layers_and_learning_ones_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frozen = dict(type="SAResNet", groups=4, frozen_stages=1, norm_eval=True)
    assert not said(caplog, tmp_path / "learning", frozen | dict(frozen_stages=-1, norm_eval=False))
    weights = str(tmp_path / "learning" / "epoch_1.pth")
    assert not said(caplog, tmp_path / "loaded", frozen, load_from=weights)
    init_cfg = dict(type="Pretrained", checkpoint=weights, prefix="backbone.")
    assert not said(caplog, tmp_path / "initialised", frozen | dict(init_cfg=init_cfg))
    # Resumed: the end of the training is there already.
    assert not said(caplog, tmp_path / "loaded", frozen, resume=True)
