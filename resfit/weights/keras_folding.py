"""Folding of the biases and the epsilon of keras.applications into the running statistics."""

from collections.abc import Mapping

from resfit.errors import WeightsError
from resfit.weights.layouts import Array

EPSILON = 1.001e-5  # of Keras's ResNets
_OURS = 1e-5


def folded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return equivalent arrays without biases of convolutions, for norms with epsilon 1e-5.

    The bias of a convolution is subtracted from the mean of the norm that follows. The difference of the epsilons is
    added to the variance.

    Raises:
        WeightsError: if the arrays are those of a ResNetV2.
    """
    layers = {name.partition("/")[0] for name in arrays}
    if any(layer == "post_bn" or "_preact_" in layer for layer in layers):
        raise WeightsError(
            "The weights are those of a ResNetV2 of Keras, whose blocks have another stride position and biases "
            "without a norm, which no network of resfit has. Expected ResNet50, ResNet101 or ResNet152. For a "
            "pre-activation network, use timm's weights, such as weights='timm/resnetv2_50.a1h_in1k'."
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
