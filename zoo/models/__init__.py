"""The built-in models: factories that take `input_shape` and `num_classes` and return a module with fresh weights.

Randomness comes from torch's global generator, which the caller seeds. A factory of one's own looks the same; it need
not accept these two arguments if the settings give all that it wants.
"""

from zoo.models.densenet import densenet
from zoo.models.mlp import mlp
from zoo.models.mobilenet import mobilenet
from zoo.models.resnet import resnet, resnet20
from zoo.models.vgg import vgg, vgg11, vgg16

__all__ = ["densenet", "mlp", "mobilenet", "resnet", "resnet20", "vgg", "vgg11", "vgg16"]
