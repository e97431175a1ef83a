"""The image models of timm: the smallest of each family, and of each of its variants."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import randn

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31")
SIZE = 64
SIZES = {"crossvit_9_240": 240, "crossvit_9_dagger_240": 240, "efficientformer_l1": 224, "halonet26t": 256}
NAMES = """
cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_nano_cc_224 coatnet_pico_rw_224 coatnext_nano_rw_224 convit_tiny
convnext_atto convnext_atto_ols convnext_atto_rms convnext_zepto_rms convnextv2_atto crossvit_9_240
crossvit_9_dagger_240 cs3darknet_focus_s cs3darknet_s cspnext_s cspnext_tiny deit_tiny_distilled_patch16_224
deit_tiny_patch16_224 densenet121 dla46_c dla46x_c dla60x_c dpn48b dpn68 dpn68b eca_botnext26ts_256 eca_resnext26ts
ecaresnet26t edgenext_small_rw edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
efficientnet_b0_g16_evos efficientnet_b0_g8_gn efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_es
efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1 efficientvim_m1_dist efficientvit_b0 efficientvit_m0
ese_vovnet19b_dw ese_vovnet19b_slim eva02_tiny_patch14_224 fasternet_t0 fastvit_mci0 fastvit_t8 fbnetc_100 fbnetv3_b
gcresnext26ts gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 halonet26t
hardcorenas_a hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lambda_resnet26rpt_256 lambda_resnet26t
lcnet_035 lcnetv2_small legacy_seresnet18 levit_128s levit_conv_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256
maxvit_rmlp_pico_rw_256 mixnet_s mnasnet_050 mnasnet_small mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_035
mobilenetv2_110d mobilenetv3_large_075 mobilenetv3_rw mobilenetv3_small_050 mobilenetv4_conv_small_035
mobilenetv4_hybrid_medium_075 mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nf_ecaresnet26 nf_regnet_b0
nf_resnet26 nf_seresnet26 pit_ti_224 pit_ti_distilled_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 pvt_v2_b2_li
regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d
resnet10t resnet14t resnet18 resnet18d resnet26t resnet32ts resnetaa34d resnetblur18 resnetv2_18 resnetv2_18d
resnext26ts rexnet_100 rexnetr_100 sebotnet33ts_256 sehalonet33ts selecsls42 semnasnet_050 seresnet18 seresnet33ts
seresnext26t_32x4d seresnext26ts shvit_s1 skresnet18 spnasnet_100 starnet_s050 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 test_byobnet test_coatnet test_convnext test_convnext2
test_convnext3 test_efficientnet test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln test_mambaout
test_maxvit test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos tf_efficientnet_b0
tf_efficientnet_cc_b0_4e tf_efficientnet_es tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_mixnet_s
tf_mobilenetv3_large_minimal_100 tf_mobilenetv3_small_075 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e
tnt_s_patch16_224 twins_svt_small visformer_tiny vit_dpwee_patch16_reg1_gap_256 vit_dwee_patch16_reg1_gap_256
vit_pe_core_tiny_patch16_384 vit_pwee_patch16_reg1_gap_256 vit_relpos_small_patch16_224 vit_small_patch16_rope_224
vit_small_patch16_rope_mixed_ape_224 vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_patch16_dinov3_qkvb
vit_tiny_r_s16_p8_224 vit_wee_patch16_reg1_gap_256 vit_xsmall_patch16_clip_224 xcit_nano_12_p16_224
"""


def architectures() -> Iterator[Architecture]:
    """Yield each model with seven classes."""
    for name in NAMES.split():
        yield Architecture(name, partial(_build, name), partial(_inputs, name), _call)


def _build(name: str) -> Any:
    import timm

    resized = {"img_size": SIZE} if timm.get_pretrained_cfg(name).fixed_input_size and name not in SIZES else {}
    return timm.create_model(name, num_classes=7, **resized)


def _inputs(name: str) -> dict[str, Any]:
    size = SIZES.get(name, SIZE)
    return {"x": randn(2, 3, size, size)}


def _call(model: Any, x: Any) -> object:
    return model(x)
