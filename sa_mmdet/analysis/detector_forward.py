"""One forward of any detector for one image, with a fixed number of proposals and masks, whatever its weights are.

It is the forward that MMDetection's own get_flops.py counts, ``mode='tensor'``. What depends there on the weights, on
annotations or on a GPU is replaced: proposals and detections are given instead of selected.
"""

from functools import partial
from typing import Any

import torch
from mmcv.ops import CARAFEPack, MaskedConv2d
from mmdet.models.detectors import SemiBaseDetector
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.models.mot import BaseMOTModel
from mmdet.models.roi_heads.cascade_roi_head import CascadeRoIHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmdet.models.roi_heads.sparse_roi_head import SparseRoIHead
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .operators import tensors_in

PROPOSALS = 1000  # for which box heads are counted
MASKS = 100  # for which mask heads are counted

# What inference computes after this forward, by the class of the head: no layer of the network has these operations.
_AFTERWARDS = {
    "SOLOV2Head": "the convolutions of its masks by predicted kernels",
    "RTMDetInsHead": "the convolutions of its masks by predicted kernels",
}


def inner_detector(model: Any) -> Any:
    """The detector that a model runs: for semi-supervised training the teacher or the student, else itself.

    Raises:
        ValueError: It is a tracker, which does not run as a detector.
    """
    if isinstance(model, SemiBaseDetector):
        return getattr(model, model.semi_test_cfg.get("forward_on", "teacher"))
    if isinstance(model, BaseMOTModel):
        way_out = "count its detector, which is the entry 'detector' of its config"
        if not hasattr(model, "detector"):
            way_out = "it takes videos, only detectors and backbones are counted"
        raise ValueError(f"{type(model).__name__} is a tracker: {way_out}")
    return model


def prepare(detector: Any, height: int, width: int) -> list[str]:
    """Let ``detector(image)`` run all layers once, for one image of this size, and return tensors.

    Returns:
        What inference computes and this forward leaves out, in words.
    """
    device = next(detector.parameters()).device
    left_out = [
        f"{name}: {what}"
        for name, module in detector.named_modules()
        for head, what in _AFTERWARDS.items()
        if any(kind.__name__ == head for kind in type(module).__mro__)
    ]
    for name, module in detector.named_modules():
        if isinstance(module, BaseRoIExtractor):
            _replace_pooling(module)
        if isinstance(module, MaskedConv2d):  # counted as if no position were left out, which only GPUs can do
            module.forward = partial(_dense, module)
        if isinstance(module, CARAFEPack):
            module.feature_reassemble = partial(_upsampled, module.scale_factor)
            left_out.append(f"{name}: the reassembly of its features")
    proposals = PROPOSALS
    roi_head = getattr(detector, "roi_head", None)
    if isinstance(roi_head, SparseRoIHead) and roi_head.with_mask:
        _mask_in_last_stage(roi_head)
    elif isinstance(roi_head, CascadeRoIHead) and roi_head.with_mask:
        proposals = MASKS
        _refine_more(roi_head)
    if hasattr(detector, "rpn_head"):
        for head in (detector.rpn_head, *getattr(detector.rpn_head, "stages", [])[-1:]):
            head.predict_by_feat = partial(_propose, _boxes(proposals, height, width, device))
    if isinstance(detector, SingleStageInstanceSegmentor) and detector.with_bbox:
        _detect(detector.bbox_head, height, width, device)
    sample = _sample(height, width, proposals, device)
    detector.forward = partial(_forward, partial(type(detector).forward, detector), sample)
    return left_out


def _forward(forward: Any, sample: DetDataSample, image: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensors_in(forward(image, [sample], mode="tensor")))


def _boxes(number: int, height: int, width: int, device: torch.device) -> Tensor:
    """Boxes in an image, from left above to right below."""
    corners = torch.linspace(0, 0.75, number, device=device)
    left, top = corners * width, corners * height
    return torch.stack((left, top, left + width / 4, top + height / 4), dim=1)


def _sample(height: int, width: int, proposals: int, device: torch.device) -> DetDataSample:
    sizes = dict.fromkeys(("ori_shape", "img_shape", "pad_shape", "batch_input_shape"), (height, width))
    sample = DetDataSample(metainfo=dict(img_id=0, scale_factor=(1.0, 1.0), **sizes))
    sample.proposals = InstanceData(bboxes=_boxes(proposals, height, width, device))
    for name, number in (("gt_instances", MASKS), ("ignored_instances", 0)):
        labels = torch.zeros(number, dtype=torch.long, device=device)
        setattr(sample, name, InstanceData(bboxes=_boxes(number, height, width, device), labels=labels))
    return sample


def _propose(boxes: Tensor, *_: Any, batch_img_metas: list[dict], **__: Any) -> list[InstanceData]:
    return [InstanceData(bboxes=boxes, scores=boxes[:, 0]) for _ in batch_img_metas]


def _replace_pooling(extractor: Any) -> None:
    """Make a RoI extractor's pooling return maps of the right shape without mmcv's operator, which needs real data."""

    def pooled(layer: Any, channels: int | None, features: Any, rois: Tensor, *_: Any, **__: Any) -> Tensor:
        first = features if isinstance(features, Tensor) else features[0]
        return first.new_zeros(len(rois), channels or first.shape[1], *_pair(layer.output_size))

    if isinstance(extractor, SingleRoIExtractor):  # selects the proposals of each level, too
        extractor.forward = partial(pooled, extractor.roi_layers[0], extractor.out_channels)
        return
    for layer in extractor.roi_layers:
        layer.forward = partial(pooled, layer, None)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _dense(conv: Any, x: Tensor, *_: Any) -> Tensor:
    return nn.Conv2d.forward(conv, x)


def _upsampled(factor: int, x: Tensor, mask: Tensor) -> Tensor:
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def _refine_more(roi_head: Any) -> None:
    """Refine all proposals in a cascade that is given as many as get masks: its forward would mask all of them."""
    refine = roi_head._refine_roi

    def refined(x: Any, rois: Tensor, batch_img_metas: Any, num_proposals_per_img: Any, **options: Any) -> Any:
        rois, scores, deltas = refine(
            x=x,
            rois=rois.repeat(PROPOSALS // MASKS, 1),
            batch_img_metas=batch_img_metas,
            num_proposals_per_img=(PROPOSALS,),
            **options,
        )
        return [per_image[:MASKS] for per_image in rois], scores, deltas

    roi_head._refine_roi = refined


def _mask_in_last_stage(roi_head: Any) -> None:
    """Compute masks in the last stage alone, as inference does; in this forward all stages do."""
    mask = roi_head._mask_forward
    last = roi_head.num_stages - 1
    roi_head._mask_forward = lambda stage, *inputs: mask(stage, *inputs) if stage == last else {}


def _detect(head: Any, height: int, width: int, device: torch.device) -> None:
    """Give the detections for which masks are computed, which this forward would select by a training's loss."""
    found = InstanceData(
        bboxes=_boxes(MASKS, height, width, device),
        coeffs=torch.zeros(MASKS, getattr(head, "num_protos", 0), device=device),  # YOLACT's
        param_preds=torch.zeros(MASKS, getattr(head, "num_params", 0), device=device),  # CondInst's
        points=torch.zeros(MASKS, 2, device=device),
        strides=torch.ones(MASKS, device=device),
    )
    head.loss = lambda *_, **__: {}
    head.get_positive_infos = lambda: [found]
