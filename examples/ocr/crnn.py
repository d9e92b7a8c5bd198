"""EasyOCR's English recogniser, second generation, by its published description: a VGG, two LSTMs, one score a column.

    image [N, 1, 64, W] → seven convolutions → mean over the height → two LSTMs in both directions, each with a linear
    layer → scores [N, W / 4 − 1, 97] for 96 characters and CTC's blank, which comes first

Sources: Shi et al. 2015 (CRNN), arXiv 1507.05717; Baek et al. 2019, arXiv 1904.01906 (its VGG and BiLSTM); EasyOCR's
page on custom models. Modules bear the names of the published weights, so that these load by name.
"""

from torch import Tensor, nn

HEIGHT = 64
CHARACTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""In the order of the scores, behind the blank."""


class Features(nn.Module):
    """Seven convolutions; the width is divided by 4, the height by 16."""

    def __init__(self) -> None:
        super().__init__()
        self.ConvNet = nn.Sequential(
            *_convolution(1, 32),
            nn.MaxPool2d(2, 2),
            *_convolution(32, 64),
            nn.MaxPool2d(2, 2),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d((2, 1), (2, 1)),
            *_with_norm(128, 256),
            *_with_norm(256, 256),
            nn.MaxPool2d((2, 1), (2, 1)),
            nn.Conv2d(256, 256, 2),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return [N, channels, rows, columns] of images [N, 1, H, W]."""
        found: Tensor = self.ConvNet(images)
        return found


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]


def _with_norm(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Context(nn.Module):
    """An LSTM in both directions, and a linear layer that joins them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, outputs)

    def forward(self, columns: Tensor) -> Tensor:
        """Return [N, columns, outputs] of [N, columns, inputs]."""
        states, _ = self.rnn(columns)
        joined: Tensor = self.linear(states)
        return joined


class Recogniser(nn.Module):
    """The network."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = Features()
        self.SequenceModeling = nn.Sequential(Context(256, 256, 256), Context(256, 256, 256))
        self.Prediction = nn.Linear(256, 1 + len(CHARACTERS))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [N, columns, 97] of images [N, 1, 64, W], grey values from -1 to 1."""
        columns = self.FeatureExtraction(images).mean(2).transpose(1, 2)
        scores: Tensor = self.Prediction(self.SequenceModeling(columns))
        return scores


def make() -> Recogniser:
    """Return the network; `model.weights` brings its weights."""
    return Recogniser()
