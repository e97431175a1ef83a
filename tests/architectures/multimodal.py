"""Text with images, layout or video."""

from __future__ import annotations

from functools import partial

import torch

from tests.architectures.describe import (
    BERT,
    LLAMA,
    SIZE,
    SPECIAL,
    T5,
    TOWERS,
    VIT,
    Architecture,
    Inputs,
    boxes,
    fixed,
    floats,
    hf,
    ids,
    image,
    merge,
    noise,
    target_ids,
    text,
    video,
)

IMAGE_TOKEN = 95  # the id that is a placeholder for a patch of the image


def image_text(patches: int) -> Inputs:
    """Return two sentences, each after the placeholders of an image."""
    return {"input_ids": torch.cat([torch.full((2, patches), IMAGE_TOKEN), ids(16)], 1)}


def packed() -> Inputs:
    """Return two images with all patches in one row, and two sentences about them."""
    sentences = image_text(4)["input_ids"]
    return {
        "input_ids": sentences,
        "mm_token_type_ids": (sentences == IMAGE_TOKEN).int(),
        "pixel_values": noise(2 * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    }


def padded_patches() -> Inputs:
    """Return two images as rows of patches, with their original shapes."""
    return {
        "pixel_values": noise(2, 16, 48),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    }


def patches() -> Inputs:
    """Return two images as rows of patches, each preceded by its row and column."""
    return {"flattened_patches": torch.cat([torch.ones(2, 8, 2), noise(2, 8, 12)], 2)}


def image_mask() -> Inputs:
    """Return which four tokens of each sentence are placeholders of its image."""
    return {"image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 1] + [0] * 11] * 2, dtype=torch.bool)}


def relative_boxes() -> Inputs:
    """Return a bounding box for each token of two sentences, in fractions of the page."""
    return {"bbox": torch.tensor([0.1, 0.1, 0.4, 0.5]).expand(2, 16, 4)}


# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
MULTIMODAL: tuple[Architecture, ...] = (
    hf("align", "Align", merge(text, image), text_config=BERT, projection_dim=32,
        vision_config={"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.5, "hidden_dim": 128,
                       "initializer_range": 0.2}),
    hf("altclip", "AltCLIP", merge(text, image), text_config={**BERT, "project_dim": 32}, vision_config=VIT,
        projection_dim=16),
    hf("blip", "Blip", merge(text, image), **TOWERS),
    hf("chinese_clip", "ChineseCLIP", merge(text, image), **TOWERS),
    hf("clip", "CLIP", merge(text, image), **TOWERS),
    hf("clipseg", "CLIPSeg", merge(text, image), **TOWERS),
    hf("git", "Git", merge(text, image), **BERT, **SPECIAL, vision_config=VIT),
    hf("layoutlmv3", "LayoutLMv3", merge(text, boxes, image), **BERT, coordinate_size=6, shape_size=4,
        input_size=32, patch_size=8),
    hf("lxmert", "Lxmert", merge(text, floats(visual_feats=(2, 4, 16), visual_pos=(2, 4, 4))), vocab_size=99,
        hidden_size=32, num_attention_heads=4, intermediate_size=40, l_layers=1, x_layers=1, r_layers=1,
        visual_feat_dim=16),
    hf("owlvit", "OwlViT", merge(text, image), **TOWERS),
    hf("siglip", "Siglip", merge(text, image), text_config={**BERT, **SPECIAL}, vision_config=VIT),
    hf("vilt", "Vilt", merge(text, image), **VIT, vocab_size=99),
    hf("visual_bert", "VisualBert", merge(text, floats(visual_embeds=(2, 4, 16))), **BERT, visual_embedding_dim=16),
    hf("xclip", "XCLIP", merge(text, video), text_config={**BERT, **SPECIAL}, projection_dim=32,
        vision_config={**VIT, "num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 40,
                       "mit_num_hidden_layers": 1, "mit_num_attention_heads": 4},
        prompt_num_attention_heads=4),
    hf("blip-2", "Blip2", merge(partial(image_text, 4), image), head="ForConditionalGeneration", num_query_tokens=4,
        image_token_index=95, vision_config={**VIT}, qformer_config={**BERT, "encoder_hidden_size": 32},
        text_config={"model_type": "opt", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "ffn_dim": 40, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    hf("bridgetower", "BridgeTower", merge(text, image, fixed(pixel_mask=torch.ones(2, 32, 32, dtype=torch.long))),
        hidden_size=64, num_attention_heads=4, num_hidden_layers=2, text_config={**BERT, **SPECIAL, "hidden_size": 64},
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32}),
    hf("flava", "Flava", merge(text, image), image_config=VIT, text_config=BERT, multimodal_config=SIZE, hidden_size=32,
        projection_dim=16, init_codebook=False),
    hf("kosmos-2", "Kosmos2", merge(text, image, image_mask), latent_query_num=4,
        text_config={"vocab_size": 99, "max_position_embeddings": 64, "embed_dim": 32, "layers": 2, "ffn_dim": 40,
            "attention_heads": 4}, vision_config=VIT),
    hf("llava", "Llava", merge(partial(image_text, 16), image), image_token_index=95, image_seq_length=16,
        vision_config={"model_type": "clip_vision_model", **VIT}, text_config={"model_type": "llama", **LLAMA}),
    hf("mgp-str", "Mgpstr", image, head="ForSceneTextRecognition", image_size=(32, 32), patch_size=8,
        max_token_length=5, num_character_labels=12, num_bpe_labels=12, num_wordpiece_labels=12, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, drop_rate=0.1),
    hf("pix2struct", "Pix2Struct", merge(patches, target_ids), head="ForConditionalGeneration",
        text_config={"vocab_size": 99, "hidden_size": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4},
        vision_config={"hidden_size": 32, "patch_embed_hidden_size": 12, "d_ff": 40, "d_kv": 8, "num_hidden_layers": 2,
            "num_attention_heads": 4, "seq_len": 16, "patch_size": 2}),
    hf("qwen2_vl", "Qwen2VL", packed, image_token_id=95, video_token_id=96, vision_start_token_id=97,
        vision_end_token_id=98,
        text_config={**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1,
            2]}}, vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}),
    hf("siglip2", "Siglip2", merge(text, padded_patches), text_config={**BERT, **SPECIAL},
        vision_config={**SIZE, "patch_size": 4, "num_patches": 16}),
    hf("tapas", "Tapas", merge(text, fixed(token_type_ids=torch.zeros(2, 16, 7, dtype=torch.long))),
        head="ForQuestionAnswering", **BERT),
    hf("udop", "Udop", merge(text, relative_boxes, image, target_ids), **T5, max_2d_position_embeddings=64,
        image_size=32, patch_size=8),
)
# fmt: on
