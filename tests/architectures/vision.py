"""Image and video classifiers and backbones, and some detectors."""

from __future__ import annotations

from functools import partial

from tests.architectures.describe import BLOCKS, PYRAMID, RESNET, SIZE, VIT, Architecture, Settings, hf, image, video

SWIN: Settings = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
VISION: tuple[Architecture, ...] = (
    hf("beit", "Beit", image, **VIT),
    hf("bit", "Bit", image, **RESNET, num_groups=4),
    hf("convnext", "ConvNext", image, num_stages=2, hidden_sizes=(16, 32), depths=(1, 2), drop_path_rate=0.1),
    hf("convnextv2", "ConvNextV2", image, num_stages=2, hidden_sizes=(16, 32), depths=(1, 2), drop_path_rate=0.1),
    hf("cvt", "Cvt", image, embed_dim=(16, 16, 32), num_heads=(1, 2, 4), depth=(1, 2, 3)),
    hf("data2vec-vision", "Data2VecVision", image, **VIT),
    hf("deit", "DeiT", image, **VIT),
    hf("detr", "Detr", image, **BLOCKS, num_queries=4,
        backbone_config={"model_type": "resnet", **RESNET, "out_features": ["stage2"]}),
    hf("dinov2", "Dinov2", image, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, drop_path_rate=0.1),
    hf("dpt", "DPT", image, **VIT),
    hf("efficientnet", "EfficientNet", image, image_size=32, width_coefficient=0.1, depth_coefficient=0.5,
        hidden_dim=128),
    hf("focalnet", "FocalNet", image, image_size=32, embed_dim=16, hidden_sizes=(16, 32), depths=(1, 2),
        focal_levels=(2, 2), focal_windows=(3, 3)),
    hf("glpn", "GLPN", image, **PYRAMID),
    hf("hiera", "Hiera", partial(image, 64), image_size=(64, 64), embed_dim=16, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2)),
    hf("levit", "Levit", partial(image, 64), image_size=64, hidden_sizes=(16, 24, 32), num_attention_heads=(1, 2, 2),
        depths=(1, 1, 1), key_dim=(8, 8, 8)),
    hf("mobilenet_v1", "MobileNetV1", image, image_size=32, depth_multiplier=0.25),
    hf("mobilenet_v2", "MobileNetV2", image, image_size=32, depth_multiplier=0.25),
    hf("mobilevit", "MobileViT", partial(image, 64), image_size=64, hidden_sizes=(16, 24, 32),
        neck_hidden_sizes=(8, 8, 16, 16, 24, 32, 32)),
    hf("mobilevitv2", "MobileViTV2", partial(image, 64), image_size=64, width_multiplier=0.25,
        n_attn_blocks=(1, 1, 1)),
    hf("poolformer", "PoolFormer", image, hidden_sizes=(16, 16, 32, 32), depths=(1, 1, 1, 1), drop_path_rate=0.1),
    hf("pvt", "Pvt", image, **PYRAMID, image_size=32),
    hf("pvt_v2", "PvtV2", image, **PYRAMID, image_size=32),
    hf("regnet", "RegNet", image, **RESNET, groups_width=8),
    hf("resnet", "ResNet", image, **RESNET),
    hf("rt_detr", "RTDetr", image, d_model=32, num_queries=4, num_denoising=0, encoder_hidden_dim=32,
        encoder_in_channels=(16, 16, 32), encoder_ffn_dim=40, encoder_attention_heads=4, decoder_in_channels=(32,) * 3,
        decoder_ffn_dim=40, decoder_layers=2, decoder_attention_heads=4,
        backbone_config={"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": (16, 16, 16, 32),
                         "depths": (1, 1, 1, 1), "layer_type": "basic",
                         "out_features": ["stage2", "stage3", "stage4"]}),
    hf("segformer", "Segformer", image, **PYRAMID),
    hf("swiftformer", "SwiftFormer", partial(image, 64), image_size=64, depths=(1, 1, 1, 1),
        embed_dims=(16, 16, 32, 32)),
    hf("swin", "Swin", image, **SWIN, window_size=4),
    hf("swin2sr", "Swin2SR", image, image_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4),
    hf("swinv2", "Swinv2", image, **SWIN, window_size=4),
    hf("textnet", "TextNet", image, stem_out_channels=16, hidden_sizes=(16, 16, 16, 32, 32)),
    hf("timesformer", "Timesformer", video, **VIT, num_frames=2),
    hf("videomae", "VideoMAE", video, **VIT, num_frames=2),
    hf("vit", "ViT", image, **VIT, hidden_dropout_prob=0.1),
    hf("vit_mae", "ViTMAE", image, **VIT),
    hf("vit_msn", "ViTMSN", image, **VIT),
    hf("vivit", "Vivit", video, **SIZE, image_size=32, num_frames=2, tubelet_size=(2, 8, 8)),
    hf("yolos", "Yolos", image, **(VIT | {"image_size": (32, 32)}), num_detection_tokens=4),
)
# fmt: on
