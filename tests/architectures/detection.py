"""Object detection, pose and depth estimation, keypoint matching."""

from __future__ import annotations

from functools import partial

from tests.architectures.describe import (
    BERT,
    BLOCKS,
    RESNET,
    TOWERS,
    VIT,
    Architecture,
    Settings,
    floats,
    hf,
    image,
    merge,
    text,
)

DETR: Settings = {
    **BLOCKS,
    "num_queries": 4,
    "backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage2"]},
}
FOUR: Settings = {"embedding_size": 16, "hidden_sizes": (16, 16, 16, 32), "depths": (1, 1, 1, 1)}
DEFORMABLE: Settings = {
    **BLOCKS,
    "num_queries": 4,
    "num_feature_levels": 2,
    "backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage1", "stage2"]},
}
RT: Settings = {
    "d_model": 32,
    "num_queries": 4,
    "num_denoising": 0,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": (16, 16, 32),
    "encoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_in_channels": (32,) * 3,
    "decoder_ffn_dim": 40,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
}
RT_BACKBONE: Settings = {
    "model_type": "rt_detr_resnet",
    **FOUR,
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
HGNET: Settings = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 16],
    "hidden_sizes": [16, 16, 16, 32],
    "stage_in_channels": [16, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 16, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "out_features": ["stage2", "stage3", "stage4"],
}
SUPERPOINT: Settings = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16}
DINO: Settings = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
DETECTION: tuple[Architecture, ...] = (
    hf("conditional_detr", "ConditionalDetr", image, head="ForObjectDetection", **DETR),
    hf("d_fine", "DFine", partial(image, 64), head="ForObjectDetection", **RT | {"encoder_in_channels": (16, 16, 32)},
        backbone_config=HGNET),
    hf("dab-detr", "DabDetr", image, head="ForObjectDetection", hidden_size=32,
        **{name: value for name, value in DETR.items() if name != "d_model"}),
    hf("deformable_detr", "DeformableDetr", image, head="ForObjectDetection", **DEFORMABLE),
    hf("depth_anything", "DepthAnything", image, head="ForDepthEstimation", patch_size=8, reassemble_hidden_size=32,
        neck_hidden_sizes=(8, 8, 16, 16), fusion_hidden_size=8, head_hidden_size=8,
        backbone_config={"model_type": "dinov2", **DINO}),
    hf("grounding-dino", "GroundingDino", merge(text, image), **DEFORMABLE, text_config={"model_type": "bert", **BERT},
        max_text_len=16),
    hf("lw_detr", "LwDetr", partial(image, 64), d_model=32, num_queries=4, group_detr=2, decoder_layers=2,
        decoder_ffn_dim=40, decoder_self_attention_heads=4, decoder_cross_attention_heads=4,
        projector_scale_factors=[1.0],
        backbone_config={"model_type": "lw_detr_vit", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 64, "pretrain_image_size": 64, "patch_size": 8, "num_windows": 4,
            "out_indices": [1, 2]}),
    hf("lightglue", "LightGlue", floats(pixel_values=(1, 2, 3, 32, 32)), head="ForKeypointMatching", descriptor_dim=32,
        num_hidden_layers=2, num_attention_heads=4,
        keypoint_detector_config={"model_type": "superpoint", **SUPERPOINT, "descriptor_decoder_dim": 32}),
    hf("owlv2", "Owlv2", merge(text, image), head="ForObjectDetection", **TOWERS | {"projection_dim": 32}),
    hf("rt_detr_v2", "RTDetrV2", image, head="ForObjectDetection", **RT, backbone_config=RT_BACKBONE),
    hf("superpoint", "SuperPoint", image, head="ForKeypointDetection", **SUPERPOINT),
    hf("vitdet", "VitDet", image, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        pretrain_image_size=32, patch_size=8, window_size=2, window_block_indices=[0], residual_block_indices=[1],
        use_relative_position_embeddings=True, drop_path_rate=0.1),
    hf("vitpose", "VitPose", image, head="ForPoseEstimation", num_labels=5,
        backbone_config={"model_type": "vitpose_backbone", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": (32, 32), "patch_size": (8, 8), "out_indices": [2]},
        use_simple_decoder=False),
    hf("zoedepth", "ZoeDepth", image, head="ForDepthEstimation", reassemble_factors=(4, 2, 1, 0.5),
        neck_hidden_sizes=(8, 8, 16, 16), fusion_hidden_size=8, bottleneck_features=8, bin_embedding_dim=8,
        num_relative_features=8, num_attractors=(4, 2, 2, 1),
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        use_batch_norm_in_fusion_residual=True,
        backbone_config={"model_type": "beit", **VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
            "reshape_hidden_states": False}),
)
# fmt: on
