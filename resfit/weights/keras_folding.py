"""What a ResNet of keras.applications computes beyond ours, made part of what both have."""

from collections.abc import Mapping

from resfit.errors import WeightsError
from resfit.weights.layouts import Array

EPSILON = 1.001e-5  # of Keras's ResNets
_OURS = 1e-5


def folded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays without biases of convolutions, and for norms of our epsilon.

    A convolution's bias shifts what the norm behind it sees, and so is taken from the norm's mean. What the norm's
    epsilon has more is added to its variance.

    Raises:
        WeightsError: if they are those of a ResNetV2.
    """
    layers = {name.partition("/")[0] for name in arrays}
    if any(layer == "post_bn" or "_preact_" in layer for layer in layers):
        raise WeightsError(
            "These are the weights of a ResNetV2 of Keras, whose blocks step in another place, and have biases with no "
            "norm behind them: no network here computes that. Expected ResNet50, ResNet101 or ResNet152. For a "
            "pre-activated network take timm's weights, such as weights='timm/resnetv2_50.a1h_in1k'."
        )
    result = dict(arrays)
    for layer in layers:
        norm = f"{layer.removesuffix('_conv')}_bn/moving_mean"
        if layer.endswith("_conv") and f"{layer}/bias" in result and norm in result:
            bias = result.pop(f"{layer}/bias")
            result[norm] = (result[norm].astype("f8") - bias).astype(result[norm].dtype)
    for name, value in result.items():
        if name.endswith("_bn/moving_variance"):
            result[name] = (value.astype("f8") + (EPSILON - _OURS)).astype(value.dtype)
    return result
