"""Networks in which channels flow in every way that the analysis knows, and in some that it does not."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from samples.digits.model import digits_net
from samples.own_loop.run import small_network
from tests.models.cifar_resnet import resnet20, resnet32
from tests.models.tiny_cnn import tiny_cnn

IMAGE_SHAPE = (3, 8, 8)


class Stem(nn.Module):
    """A convolution of the images, an activation, `body`, global average pooling and a classifier."""

    def __init__(self, body: nn.Module, *, width: int = 8, features: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = body
        self.head = nn.Linear(features, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(functional.relu(self.stem(x), inplace=True)).mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * index) for index in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * index, 4, 3, padding=1) for index in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        return x


class Branches(nn.Module):
    """Splits into halves, convolves one, and joins them in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.narrow = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return torch.cat([self.narrow(second), first], 1)


class Swapped(nn.Module):
    """Adds the halves to one another, so that one channel lies at two positions: such channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + torch.cat([x[:, 4:], x[:, :4]], 1)


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Linear(8, 4)
        self.up = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        gate = functional.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(gate))))[:, :, None, None]


class FlattenNet(nn.Module):
    """A classifier of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.hidden = nn.Linear(8 * 2 * 2, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv(functional.relu(self.stem(x))))
        return self.head(functional.gelu(self.hidden(functional.dropout(x.flatten(1), training=self.training))))


class Repeated(nn.Module):
    """One convolution called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.conv(torch.relu(self.conv(x)))))


class Tied(nn.Module):
    """Two layers with one weight and two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


class ChannelsLast(nn.Module):
    """ConvNeXt: linear layers and layer norm over the last axis, a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A patch for every token, a learned position and a class token, then a mixer of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(8, 8, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 17, 8))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.mix = nn.Linear(17, 17)
        self.out = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = self.mix(x.transpose(1, 2)) + x.transpose(1, 2)
        return self.out(torch.softmax(x[:, :, 1:], 1).unflatten(2, (4, 4)))


class Computed(nn.Module):
    """A factor that is computed from a parameter, and buffers inside and outside the state dict."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.register_buffer("shift", torch.ones(1, 8, 1, 1), persistent=persistent)
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) + self.shift) * torch.exp(self.factor).view(1, -1, 1, 1)


class Running(nn.Module):
    """An operator for which the order of the channels matters, and no rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


class Fixed(nn.Module):
    """A factor for each channel that no parameter holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(1.0, 9.0)[:, None, None]


class Pick(nn.Module):
    """Reads one channel by its number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x[:, 3:4] + x[:, 2].unsqueeze(1)


class Shuffle(nn.Module):
    """ShuffleNet: channels in two rows, read by columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = x.shape
        return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)


class Attention(nn.Module):
    """Two heads; queries, keys and values from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        count, length, width = tokens.shape
        query, key, value = self.projection(tokens).view(count, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, width)
        return self.out(mixed).transpose(1, 2).view_as(x)


class Overlapping(nn.Module):
    """Two convolutions read slices that have channels in common."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, 1)
        self.second = nn.Conv2d(6, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x[:, :6]) + self.second(x[:, 2:])


class Mirrored(nn.Module):
    """A weight that is read a second time with inputs and outputs exchanged, and a bias that is added a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.conv(x)) + self.conv.bias[:, None, None]
        return functional.conv_transpose2d(hidden, self.conv.weight)


class Frozen(nn.Module):
    """A part under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = torch.relu(self.conv(x))
        return y + x


class FeatureNet(nn.Module):
    """Its output is the concatenation of a feature and what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feature = self.conv(torch.relu(self.stem(x)))
        return torch.cat([feature, self.head(feature)], 1).mean((2, 3))


def _resized() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.PReLU(8),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.AvgPool2d(2, 1),
        nn.ZeroPad2d(1),
        nn.InstanceNorm2d(8, affine=True),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 1),
    )


def _mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 1),
        # Two outputs of every channel.
        nn.Conv2d(8, 16, 3, padding="same", groups=8),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 8, 1),
    )


def _grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1))


def _normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.LayerNorm([8, 8, 8]))


# Name -> how to build it, and the lengths of the segments that it must be found to have, longest first.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # The shortcut ends in stage 3, which the classifier reads; the blocks' inner channels are free.
    "tiny": (tiny_cnn, (16, 16, 8)),
    "digits": (digits_net, (64, 64, 64, 32, 32, 16, 16)),
    "own loop": (small_network, (64, 32, 16)),
    # Padded shortcuts: the 32 channels of stage 2 are the 16 of stage 1 and 16 around them; likewise in stage 3.
    "resnet20": (resnet20, (64,) * 3 + (32,) * 4 + (16,) * 5),
    "resnet32": (resnet32, (64,) * 5 + (32,) * 6 + (16,) * 7),
    "concat": (lambda: Stem(Dense(), features=20), (8, 4, 4, 4)),
    "branches": (lambda: Stem(Branches()), (8, 4, 4, 4)),
    "swapped": (lambda: Stem(Swapped()), (8,)),
    "excite": (lambda: Stem(Excite()), (8, 8, 4)),
    "flatten": (FlattenNet, (12, 8, 8)),
    "repeated": (lambda: Stem(Repeated()), (8,)),
    "tied": (lambda: Stem(Tied()), (8,)),
    "channels last": (lambda: Stem(ChannelsLast()), (16, 8)),
    "tokens": (lambda: Stem(Tokens()), (8, 8, 8)),
    "resized": (lambda: Stem(_resized()), (8, 8, 8)),
    "mobile": (lambda: Stem(_mobile()), (8, 8, 8)),
    "grouped": (lambda: Stem(_grouped()), (8, 8, 8, 8)),
    "normalised": (lambda: Stem(_normalised()), (8, 8, 4, 4)),
    "weight norm": (lambda: Stem(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))), ()),
    "computed": (lambda: Stem(Computed(persistent=True)), (8, 8)),
    "buffer outside the state": (lambda: Stem(Computed(persistent=False)), (8,)),
    "running": (lambda: Stem(Running()), ()),
    "fixed": (lambda: Stem(Fixed()), ()),
    "pick": (lambda: Stem(Pick()), ()),
    "shuffle": (lambda: Stem(Shuffle()), ()),
    "attention": (lambda: Stem(Attention()), (8, 8)),
    "pixel shuffle": (lambda: Stem(nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 8, 1))), (8, 8)),
    "overlapping": (lambda: Stem(Overlapping()), (8, 4, 2, 2)),
    "mirrored": (lambda: Stem(Mirrored()), (8, 8)),
    "frozen": (lambda: Stem(Frozen()), (8,)),
    "feature": (FeatureNet, (8,)),
}
SHAPES = {"digits": (1, 8, 8), "resnet20": (3, 32, 32), "resnet32": (3, 32, 32)}


def network(name: str) -> nn.Module:
    """The network in evaluation mode; no two channels alike in any parameter or statistic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name][0]().eval().requires_grad_(False)
        for key, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                # Sums over many weights stay near 1, so that activations neither vanish nor saturate.
                tensor.normal_(0, 1 / math.sqrt(max(1, tensor[0].numel()))) if tensor.ndim > 1 else tensor.normal_(0.5, 0.5)
    return model


def image_shape(name: str) -> tuple[int, int, int]:
    return SHAPES.get(name, IMAGE_SHAPE)
