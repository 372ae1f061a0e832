"""What made-up artifacts have in common: the network they speak of."""

from masksparse_deploy.core.files import sha256_bytes

# name, out channels, in channels, kernel, output positions
LAYERS = (
    ("layer1.0.conv1", 32, 32, 3, 64),
    ("layer1.0.conv2", 32, 32, 3, 64),
    ("layer1.1.conv1", 32, 32, 3, 64),
    ("layer1.1.conv2", 32, 32, 3, 64),
    ("layer2.0.conv1", 64, 32, 3, 16),
    ("layer2.0.conv2", 64, 64, 3, 16),
    ("layer2.0.shortcut", 64, 32, 1, 16),
    ("layer2.1.conv1", 64, 64, 3, 16),
    ("layer2.1.conv2", 64, 64, 3, 16),
)


def digest(text: str) -> str:
    return sha256_bytes(text.encode())
