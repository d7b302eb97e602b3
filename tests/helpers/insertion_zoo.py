"""Configs of MMDetection's zoo, one of a family, and the places that their backbones and necks have for attention."""

from collections.abc import Mapping
from typing import Any

# Behind every stage, by the backbone's type.
STAGES = {
    "CSPDarknet": ["stage*"],
    "CSPNeXt": ["stage*"],
    "Darknet": ["conv_res_block*"],
    "EfficientNet": ["layers.*"],
    "HRNet": ["stage*.-1.branches.*"],
    "HourglassNet": ["hourglass_modules.*"],
    "PyramidVisionTransformer": ["layers.*.1.-1"],
    "PyramidVisionTransformerV2": ["layers.*.1.-1"],
    "SSDVGG": ["features.22", "features.34"],
    "SwinTransformer": ["stages.*.blocks.-1"],
}
RESNET_STAGES = ["layer*"]
# In the neck, by its type.
NECKS = {
    "BFP": ["refine"],
    "ChannelMapper": ["convs.*"],
    "CSPNeXtPAFPN": ["out_convs.*"],
    "CTResNetNeck": ["deconv_layers"],
    "DilatedEncoder": ["dilated_encoder_blocks"],
    "NASFCOS_FPN": ["adapt_convs.*"],
    "NASFPN": ["lateral_convs.*"],
    "PAFPN": ["pafpn_convs.*"],
    "SSDNeck": ["extra_layers.*"],
    "YOLOV3Neck": ["detect*"],
    "YOLOXPAFPN": ["out_convs.*"],
}
FPN = ["fpn_convs.*"]

CONFIGS = [
    # Two stages and cascades
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "double_heads/dh-faster-rcnn_r50_fpn_1x_coco",
    "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco",
    "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco",
    "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco",
    "groie/mask-rcnn_r50_fpn_groie_1x_coco",
    "ms_rcnn/ms-rcnn_r50_fpn_1x_coco",
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco",
    "pafpn/faster-rcnn_r50_pafpn_1x_coco",
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco",
    "empirical_attention/faster-rcnn_r50-attn0010_fpn_1x_coco",
    "tridentnet/tridentnet_r50-caffe_1x_coco",
    "detectors/cascade-rcnn_r50-rfp_1x_coco",
    "resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco",
    "res2net/faster-rcnn_res2net-101_fpn_2x_coco",
    "regnet/faster-rcnn_regnetx-3.2GF_fpn_1x_coco",
    "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco",
    "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco",
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco",
    "rpn/rpn_r50_fpn_1x_coco",
    # One stage
    "retinanet/retinanet_r50_fpn_1x_coco",
    "pvt/retinanet_pvt-t_fpn_1x_coco",
    "efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco",
    "nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco",
    "ghm/retinanet_r50_fpn_ghm-1x_coco",
    "ssd/ssd300_coco",
    "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco",
    "yolo/yolov3_d53_8xb8-320-273e_coco",
    "yolo/yolov3_mobilenetv2_8xb24-320-300e_coco",
    "yolof/yolof_r50-c5_8xb8-1x_coco",
    "gfl/gfl_r50_fpn_1x_coco",
    "ld/ld_r18-gflv1-r101_fpn_1x_coco",
    "sabl/sabl-retinanet_r50_fpn_1x_coco",
    "free_anchor/freeanchor_r50_fpn_1x_coco",
    "dyhead/atss_r50_fpn_dyhead_1x_coco",
    # Without anchors
    "atss/atss_r50_fpn_1x_coco",
    "autoassign/autoassign_r50-caffe_fpn_1x_coco",
    "centernet/centernet_r18_8xb16-crop512-140e_coco",
    "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco",
    "ddod/ddod_r50_fpn_1x_coco",
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco",
    "foveabox/fovea_r50_fpn_4xb4-1x_coco",
    "fsaf/fsaf_r50_fpn_1x_coco",
    "nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco",
    "reppoints/reppoints-moment_r50_fpn_1x_coco",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco",
    "tood/tood_r50_fpn_1x_coco",
    "vfnet/vfnet_r50_fpn_1x_coco",
    "yolox/yolox_tiny_8xb8-300e_coco",
    # DETRs
    "detr/detr_r50_8xb2-150e_coco",
    "conditional_detr/conditional-detr_r50_8xb2-50e_coco",
    "dab_detr/dab-detr_r50_8xb2-50e_coco",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
    "dino/dino-4scale_r50_8xb2-12e_coco",
    # Instances and panoptic segmentation
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance",
    "htc/htc-without-semantic_r50_fpn_1x_coco",
    "scnet/scnet_r50_fpn_1x_coco",
    "solo/solo_r50_fpn_1x_coco",
    "solov2/solov2_r50_fpn_1x_coco",
    "yolact/yolact_r50_1xb8-55e_coco",
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco",
    "maskformer/maskformer_r50_ms-16xb1-75e_coco",
    "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco",
]

# Whose norms of vectors do not train on one image.
TWO_IMAGES = {
    "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco",
    "resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco",
}

# The height and width in pixels that a network needs, where it is more than 128.
SIDES = {
    "dino/dino-4scale_r50_8xb2-12e_coco": 256,
    "ddod/ddod_r50_fpn_1x_coco": 512,
    "ssd/ssd300_coco": 300,
    "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco": 320,
    "yolact/yolact_r50_1xb8-55e_coco": 512,
}


def places_of(model: Mapping[str, Any]) -> list[str]:
    """The places behind all stages of a detector's backbone and in its neck."""
    stages = STAGES.get(model["backbone"]["type"], RESNET_STAGES)
    found = [f"backbone.{place}" for place in stages]
    neck = model.get("neck")
    necks = neck if isinstance(neck, list) else [neck] if neck else []
    for number, part in enumerate(necks):
        begin = f"neck.{number}" if isinstance(neck, list) else "neck"
        if part["type"] != "DyHead":  # its blocks return lists of maps
            found += [f"{begin}.{place}" for place in NECKS.get(part["type"], FPN)]
    return found
