"""The keys under which a baked ONNX file says what is sparse and why the rest is not; docs/annotations.md describes them."""

__all__ = [
    "DENSE_REASON",
    "DENSITY",
    "FLOAT_OUTPUT_REASON",
    "FLOAT_REASON",
    "GROUP_AXIS",
    "HELD_CHANNELS",
    "HELD_TENSOR",
    "MASK_SET_SHA256",
    "MASK_SHA256",
    "METHOD",
    "PATTERN",
    "POSITIONS",
    "POSITIONS_LAYER",
    "PREFIX",
    "ROLE",
    "ROLE_DENSE",
    "ROLE_REWRITTEN",
    "ROLE_SPARSE",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SOURCE_SHA256",
    "UNPADDED_SHAPE",
]

PREFIX = "masksparse."
SCHEMA = "1"

# metadata_props of the model
SCHEMA_VERSION = PREFIX + "schema_version"
ROLE = PREFIX + "role"
METHOD = PREFIX + "method"
MASK_SET_SHA256 = PREFIX + "mask_set_sha256"
SOURCE_SHA256 = PREFIX + "source_sha256"

ROLE_DENSE = "dense"
ROLE_SPARSE = "sparse"
# made of the sparse file, with layers in forms that hold no zeros
ROLE_REWRITTEN = "rewritten"

# metadata_props of a masked layer's node and of its weight
PATTERN = PREFIX + "pattern"
GROUP_AXIS = PREFIX + "group_axis"
MASK_SHA256 = PREFIX + "mask_sha256"
DENSITY = PREFIX + "density"

# metadata_props of the node and the weight of a layer that got channels of zeros
UNPADDED_SHAPE = PREFIX + "unpadded_shape"

# metadata_props of the node and the weight of a layer left dense
DENSE_REASON = PREFIX + "dense_reason"

# metadata_props of a node of an INT8 file: why it multiplies in float, why its output is not INT8
FLOAT_REASON = PREFIX + "float_reason"
FLOAT_OUTPUT_REASON = PREFIX + "float_output_reason"

# metadata_props of the Where that masks positions of a layer: the mask's digest, and whose it is
POSITIONS = PREFIX + "positions"
POSITIONS_LAYER = PREFIX + "positions_layer"

# metadata_props of an operator of a rewritten file that computes only some channels: of which tensor of the sparse file, and
# which, in their order, with spaces between them
HELD_TENSOR = PREFIX + "held_tensor"
HELD_CHANNELS = PREFIX + "held_channels"
