"""Text with images, layout or video."""

from __future__ import annotations

from tests.architectures.describe import (
    BERT,
    SPECIAL,
    TOWERS,
    VIT,
    Architecture,
    both,
    boxes,
    floats,
    hf,
    image,
    text,
    video,
)

# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
MULTIMODAL: tuple[Architecture, ...] = (
    hf("align", "Align", both(text, image), text_config=BERT, projection_dim=32,
        vision_config={"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.5, "hidden_dim": 128,
                       "initializer_range": 0.2}),
    hf("altclip", "AltCLIP", both(text, image), text_config={**BERT, "project_dim": 32}, vision_config=VIT,
        projection_dim=16),
    hf("blip", "Blip", both(text, image), **TOWERS),
    hf("chinese_clip", "ChineseCLIP", both(text, image), **TOWERS),
    hf("clip", "CLIP", both(text, image), **TOWERS),
    hf("clipseg", "CLIPSeg", both(text, image), **TOWERS),
    hf("git", "Git", both(text, image), **BERT, **SPECIAL, vision_config=VIT),
    hf("layoutlmv3", "LayoutLMv3", both(text, boxes, image), **BERT, coordinate_size=6, shape_size=4,
        input_size=32, patch_size=8),
    hf("lxmert", "Lxmert", both(text, floats(visual_feats=(2, 4, 16), visual_pos=(2, 4, 4))), vocab_size=99,
        hidden_size=32, num_attention_heads=4, intermediate_size=40, l_layers=1, x_layers=1, r_layers=1,
        visual_feat_dim=16),
    hf("owlvit", "OwlViT", both(text, image), **TOWERS),
    hf("siglip", "Siglip", both(text, image), text_config={**BERT, **SPECIAL}, vision_config=VIT),
    hf("vilt", "Vilt", both(text, image), **VIT, vocab_size=99),
    hf("visual_bert", "VisualBert", both(text, floats(visual_embeds=(2, 4, 16))), **BERT, visual_embedding_dim=16),
    hf("xclip", "XCLIP", both(text, video), text_config={**BERT, **SPECIAL}, projection_dim=32,
        vision_config={**VIT, "num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 40,
                       "mit_num_hidden_layers": 1, "mit_num_attention_heads": 4},
        prompt_num_attention_heads=4),
)
# fmt: on
