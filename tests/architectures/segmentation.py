"""Image segmentation."""

from __future__ import annotations

from functools import partial

from tests.architectures.describe import (
    BERT,
    BLOCKS,
    PYRAMID,
    SPECIAL,
    VIT,
    Architecture,
    Settings,
    floats,
    hf,
    image,
    integers,
    merge,
    text,
)
from tests.architectures.detection import FOUR

points = floats(input_points=(2, 1, 2, 2))

STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET4: Settings = {"model_type": "resnet", **FOUR, "out_features": STAGES}
SWIN4: Settings = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "window_size": 2,
    "out_features": STAGES,
}
PROMPTS: Settings = {"hidden_size": 32, "image_size": 32, "patch_size": 8, "mask_input_channels": 8}
MASKS: Settings = {"hidden_size": 32, "mlp_dim": 40, "num_attention_heads": 4, "iou_head_hidden_dim": 16}
SEGMENT_ANYTHING: Settings = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "window_size": 2,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
    "mlp_dim": 40,
}
HIERA: Settings = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [4, 4],
}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
SEGMENTATION: tuple[Architecture, ...] = (
    hf("eomt", "Eomt", image, head="ForUniversalSegmentation", hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, image_size=32, patch_size=8, num_blocks=1, num_queries=4, num_upscale_blocks=1),
    hf("groupvit", "GroupViT", merge(text, image), text_config={**BERT, **SPECIAL}, projection_dim=16,
        projection_intermediate_dim=32,
        vision_config={**VIT, "depths": [1, 1, 1], "num_hidden_layers": 3, "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4]}),
    hf("mask2former", "Mask2Former", partial(image, 64), head="ForUniversalSegmentation", backbone_config=SWIN4,
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=40, encoder_layers=2,
        decoder_layers=3, num_attention_heads=4, dim_feedforward=40, num_queries=4),
    hf("maskformer", "MaskFormer", partial(image, 64), head="ForInstanceSegmentation", backbone_config=RESNET4,
        fpn_feature_size=32, mask_feature_size=32, decoder_config={"model_type": "detr", **BLOCKS, "num_queries": 4}),
    hf("oneformer", "OneFormer", merge(partial(image, 64), integers(90, task_inputs=(2, 8))),
        head="ForUniversalSegmentation", backbone_config=SWIN4, task_seq_len=8, num_queries=4, conv_dim=32, mask_dim=32,
        hidden_dim=32, encoder_feedforward_dim=40, encoder_layers=2, decoder_layers=3, num_attention_heads=4,
        dim_feedforward=40, query_dec_layers=1, text_encoder_width=32, text_encoder_context_length=8,
        text_encoder_num_layers=1, text_encoder_vocab_size=99),
    hf("sam", "Sam", merge(image, points), prompt_encoder_config=PROMPTS, mask_decoder_config=MASKS,
        vision_config=SEGMENT_ANYTHING),
    hf("sam2", "Sam2", merge(partial(image, 64), points), mask_decoder_config=MASKS,
        prompt_encoder_config={**PROMPTS, "image_size": 64, "patch_size": 16},
        vision_config={"fpn_hidden_size": 32, "backbone_channel_list": [64, 32, 16, 8],
                       "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "backbone_config": HIERA}),
    hf("sam_hq", "SamHQ", merge(image, points), prompt_encoder_config=PROMPTS,
        mask_decoder_config={**MASKS, "vit_dim": 32}, vision_config=SEGMENT_ANYTHING),
    hf("segformer-semantic", "Segformer", image, head="ForSemanticSegmentation", **PYRAMID, decoder_hidden_size=16),
    hf("seggpt", "SegGpt",
        floats(pixel_values=(2, 3, 32, 32), prompt_pixel_values=(2, 3, 32, 32), prompt_masks=(2, 3, 32, 32)),
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=[64, 32], patch_size=8,
        decoder_hidden_size=8, merge_index=0, pretrain_image_size=32, intermediate_hidden_state_indices=[0, 1],
        mlp_dim=40),
    hf("upernet", "UperNet", partial(image, 64), head="ForSemanticSegmentation", backbone_config=RESNET4,
        hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=16),
    hf("vitmatte", "VitMatte", floats(pixel_values=(2, 4, 32, 32)), head="ForImageMatting", hidden_size=32,
        convstream_hidden_sizes=[4, 8, 16], fusion_hidden_sizes=[16, 16, 8, 8],
        backbone_config={"model_type": "vitdet", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "pretrain_image_size": 32, "patch_size": 16, "num_channels": 4,
            "out_features": ["stage2"]}),
)
# fmt: on
