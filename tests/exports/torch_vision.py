"""PyTorch: torchvision's networks with random weights, small pictures; its detectors with their own suppression and pooling of regions."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torchvision import models, ops
from torchvision.models.detection import anchor_utils, faster_rcnn

BOTH = ("torchscript", "dynamo")
PICTURES = [(1, 3, 64, 64), (2, 3, 64, 96)]


def classifier(name: str, *sizes: tuple[int, ...], **options: Any) -> Made:
    model = models.get_model(name, weights=None, num_classes=5, **options)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 1.5)
    return model, [t(*s) for s in sizes or PICTURES]


@network()
def resnet18() -> Made:
    return classifier("resnet18")


@network()
def mobilenet_v3_small() -> Made:
    return classifier("mobilenet_v3_small")


@network()
def efficientnet_b0() -> Made:
    return classifier("efficientnet_b0")


@network()
def shufflenet_v2() -> Made:
    return classifier("shufflenet_v2_x0_5")


@network()
def regnet() -> Made:
    return classifier("regnet_y_400mf")


@network()
def squeezenet() -> Made:
    return classifier("squeezenet1_1")


@network()
def mnasnet() -> Made:
    return classifier("mnasnet0_5")


@network()
def vit_b() -> Made:
    return models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5), [t(3, 3, 32, 32), t(1, 3, 32, 32)]


@network()
def swin_v2() -> Made:
    return models.SwinTransformer([4, 4], 8, [2, 2], [2, 4], [4, 4], num_classes=5, block=models.swin_transformer.SwinTransformerBlockV2, downsample_layer=models.swin_transformer.PatchMergingV2), [
        t(1, 3, 64, 64), t(2, 3, 64, 64)]


@network(one_size=BOTH)
def max_vit() -> Made:
    return models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=5), [t(1, 3, 32, 32)]


@network()
def deeplab_v3() -> Made:
    model = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    return Fn(lambda m, x: m(x)["out"], model), [t(1, 3, 64, 64), t(2, 3, 64, 96)]


@network()
def video_r2plus1() -> Made:
    return models.video.VideoResNet(models.video.resnet.BasicBlock, [models.video.resnet.Conv2Plus1D] * 4, [1, 1, 1, 1], models.video.resnet.R2Plus1dStem, num_classes=4), [
        t(1, 3, 4, 16, 16), t(2, 3, 4, 16, 16)]


def boxes(n: int, size: float) -> torch.Tensor:
    corner = torch.rand(n, 2) * size
    return torch.cat([corner, corner + torch.rand(n, 2) * size / 2 + 1], 1)


@network()
def suppressed() -> Made:
    return Fn(lambda b, s: ops.nms(b, s, 0.4)), [(boxes(30, 20), torch.rand(30)), (boxes(50, 20), torch.rand(50)), (boxes(1, 20), torch.rand(1))]


@network()
def suppressed_by_class() -> Made:
    def f(b: torch.Tensor, s: torch.Tensor, label: torch.Tensor) -> Any:
        kept = ops.batched_nms(b, s, label, 0.4)
        return b[kept], s[kept], label[kept]
    return Fn(f), [(boxes(30, 20), torch.rand(30), ints(3, 30)), (boxes(50, 20), torch.rand(50), ints(3, 50))]


@network()
def regions_aligned() -> Made:
    def f(x: torch.Tensor, b: torch.Tensor) -> Any:
        rois = torch.cat([torch.zeros(b.shape[0], 1), b], 1)
        return ops.roi_align(x, rois, (3, 4), 0.5, 2, True), ops.roi_align(x, rois, (2, 2), 0.5, 2, False)
    return Fn(f), [(t(1, 4, 16, 16), boxes(6, 20)), (t(1, 4, 12, 20), boxes(3, 18))]


@network()
def deformable() -> Made:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.mask, self.conv = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(4, 9, 3, padding=1), ops.DeformConv2d(4, 6, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            return self.conv(x, self.offset(x), self.mask(x).sigmoid())
    return Deformed(), [t(1, 4, 8, 8), t(1, 4, 7, 10)]


def detector(model: nn.Module, dtype: torch.dtype = torch.float64) -> Made:
    """A detector of one picture; scores of random weights lie close, so it is made in float64 where the exporter keeps that."""
    return Fn(lambda m, x: list(m([x])[0].values()), model.to(dtype)), [t(3, 64, 64).to(dtype), t(3, 64, 64).to(dtype) * 2]


def backbone(width: int = 16) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), nn.ReLU())
    body.out_channels = width
    return body


SIZES = {"min_size": 64, "max_size": 64, "num_classes": 3}
ANCHORS = anchor_utils.AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))


@network(one_size=BOTH)
def faster_rcnn_small() -> Made:
    return detector(faster_rcnn.FasterRCNN(backbone(), rpn_anchor_generator=ANCHORS, box_roi_pool=ops.MultiScaleRoIAlign(["0"], 3, 2),
                                           box_head=faster_rcnn.TwoMLPHead(16 * 9, 32), box_predictor=faster_rcnn.FastRCNNPredictor(32, 3),
                                           rpn_post_nms_top_n_test=20, box_score_thresh=0.1, box_detections_per_img=8, min_size=64, max_size=64))


@network(one_size=BOTH)
def mask_rcnn_small() -> Made:
    model = models.detection
    return detector(model.MaskRCNN(backbone(), rpn_anchor_generator=ANCHORS, box_roi_pool=ops.MultiScaleRoIAlign(["0"], 3, 2), box_head=faster_rcnn.TwoMLPHead(16 * 9, 32),
                                   box_predictor=faster_rcnn.FastRCNNPredictor(32, 3), mask_roi_pool=ops.MultiScaleRoIAlign(["0"], 6, 2),
                                   mask_head=model.mask_rcnn.MaskRCNNHeads(16, (8,), 1), mask_predictor=model.mask_rcnn.MaskRCNNPredictor(8, 8, 3),
                                   rpn_post_nms_top_n_test=20, box_score_thresh=0.1, box_detections_per_img=8, min_size=64, max_size=64), torch.float32)


@network(one_size=BOTH)
def retina_net_small() -> Made:
    return detector(models.detection.RetinaNet(backbone(), anchor_generator=ANCHORS, detections_per_img=8, score_thresh=0.0, **SIZES))


@network(one_size=BOTH)
def fcos_small() -> Made:
    return detector(models.detection.FCOS(backbone(32), anchor_generator=anchor_utils.AnchorGenerator(((8,),), ((1.0,),)), detections_per_img=8, score_thresh=0.0, **SIZES))


@network(one_size=BOTH)
def ssd_small() -> Made:
    return detector(models.detection.ssd.SSD(backbone(), anchor_utils.DefaultBoxGenerator([[2]]), (64, 64), 3, head=models.detection.ssd.SSDHead([16], [4], 3), score_thresh=0.0, detections_per_img=8))
