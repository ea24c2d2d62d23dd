"""DINOv2 (Oquab et al. 2024), with and without registers (Darcet et al. 2024): ViT's layers with factors on what they add.

The classifier reads the first token and the average over the image's tokens.
"""

import dataclasses
from dataclasses import dataclass

from gafreeze_jax.models import configs, vit
from gafreeze_jax.models.base import Family, Layout
from gafreeze_jax.models.checkpoints import dense, norm

LAYOUT = Layout(
    prefix="dinov2.",
    bare=("classifier.",),
    carried=r"embeddings\.mask_token",
    renamed=(
        *vit.RENAMED,
        (r"mlp\.weights_in", "mlp.gate_proj", "mlp.up_proj"),
        (r"mlp\.weights_out", "mlp.down_proj"),
    ),
    table=(
        *vit.EMBEDDINGS,
        ("embeddings.register_tokens", "embeddings/registers", None),
        *vit.ATTENTION,
        *norm("encoder.layer.{}.norm1", "layer_{}/attention/norm"),
        ("encoder.layer.{}.layer_scale1.lambda1", "layer_{}/attention/scale", None),
        *norm("encoder.layer.{}.norm2", "layer_{}/mlp/norm"),
        ("encoder.layer.{}.layer_scale2.lambda1", "layer_{}/mlp/scale", None),
        *dense("encoder.layer.{}.mlp.fc1", "layer_{}/mlp/up"),
        *dense("encoder.layer.{}.mlp.fc2", "layer_{}/mlp/down"),
        *dense("encoder.layer.{}.mlp.weights_in", "layer_{}/mlp/gated_up"),
        *dense("encoder.layer.{}.mlp.weights_out", "layer_{}/mlp/gated_down"),
        *vit.TOP,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(vit.VisionConfig):
    special_tokens = ("class",)
    num_register_tokens = 0
    averages, antialiases = True, False
    layer_dropout = 0.0

    layer_norm_eps: float = configs.field(configs.POSITIVE, 1e-6)
    patch_size: int = configs.field(configs.COUNT, 14)
    mlp_ratio: float = configs.field(configs.POSITIVE, 4)
    use_swiglu_ffn: bool = configs.field(configs.FLAG, False)
    layerscale_value: float = configs.field(configs.NOT_NEGATIVE, 1.0)
    drop_path_rate: float = configs.field(configs.RATE, 0.0)

    @property
    def intermediate_size(self) -> int:
        """Of a gated MLP it is two thirds, rounded up to a multiple of 8."""
        size = int(self.hidden_size * self.mlp_ratio)
        return (int(size * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else size


@dataclass(frozen=True, kw_only=True)
class Dinov2WithRegistersConfig(Dinov2Config):
    antialiases = True

    num_register_tokens: int = configs.field(configs.COUNT, 4)


FAMILIES = (
    Family(
        model_type="dinov2",
        kind="images",
        title="a DINOv2",
        config=Dinov2Config,
        problems=vit.problems,
        layout=LAYOUT,
        blocks=vit.blocks,
        heads={"classify": vit.classify("Dinov2ForImageClassification")},
        preprocessing=vit.cropped_preprocessing,
    ),
    Family(
        model_type="dinov2_with_registers",
        kind="images",
        title="a DINOv2 with registers",
        config=Dinov2WithRegistersConfig,
        problems=vit.problems,
        layout=dataclasses.replace(LAYOUT, prefix="dinov2_with_registers."),
        blocks=vit.blocks,
        heads={"classify": vit.classify("Dinov2WithRegistersForImageClassification")},
        preprocessing=vit.cropped_preprocessing,
    ),
)
