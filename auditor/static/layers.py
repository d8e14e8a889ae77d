"""What is known of torch's own layers by their names alone."""

from __future__ import annotations

NN = "torch.nn."

DROPOUTS = {
    NN + name: rank
    for name, rank in {
        "Dropout": 0,
        "Dropout1d": 1,
        "Dropout2d": 2,
        "Dropout3d": 3,
        "AlphaDropout": 0,
        "FeatureAlphaDropout": 0,
    }.items()
}
BATCH_NORMS = frozenset(
    NN + prefix + name for prefix in ("", "Lazy") for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
) | {NN + "SyncBatchNorm"}
INSTANCE_NORMS = frozenset(NN + prefix + f"InstanceNorm{rank}d" for prefix in ("", "Lazy") for rank in (1, 2, 3))
NORMS = BATCH_NORMS | INSTANCE_NORMS | {NN + "LayerNorm", NN + "GroupNorm", NN + "RMSNorm", NN + "LocalResponseNorm"}
RECURRENT = frozenset({NN + "RNN", NN + "LSTM", NN + "GRU"})
LINEARS = frozenset({NN + "Linear", NN + "LazyLinear", NN + "Bilinear"})
CONVS = frozenset(
    NN + prefix + name
    for prefix in ("", "Lazy")
    for name in ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
)
WEIGHTED = LINEARS | CONVS
CONTAINERS = frozenset({NN + "Sequential", NN + "ModuleList", NN + "ModuleDict"})
TRANSFORMERS = frozenset(
    NN + name
    for name in (
        "Transformer",
        "TransformerEncoder",
        "TransformerDecoder",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
    )
)
ATTENTION = frozenset({NN + "MultiheadAttention"})
EMBEDDINGS = frozenset({NN + "Embedding", NN + "EmbeddingBag"})
# Layers that torch builds with parameters of their own.
PARAMETRIC = (
    WEIGHTED
    | NORMS - {NN + "LocalResponseNorm"}
    | RECURRENT
    | TRANSFORMERS
    | ATTENTION
    | EMBEDDINGS
    | {NN + "PReLU", NN + "RNNCell", NN + "LSTMCell", NN + "GRUCell"}
)
ACTIVATIONS = frozenset(
    NN + name
    for name in (
        "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "Hardswish",
        "Hardtanh", "Hardsigmoid", "Softplus", "Softsign", "PReLU", "RReLU", "LogSigmoid", "Softmax", "LogSoftmax",
        "Softmax2d", "Softmin", "GLU", "Threshold", "Tanhshrink", "Softshrink", "Hardshrink",
    )
)  # fmt: skip
# Reshape or select without computing: a value is the same before and after.
SHAPE_ONLY = frozenset({NN + name for name in ("Identity", "Flatten", "Unflatten")})

# Base classes whose subclasses are nn.Modules although they are not called torch.nn.Module.
MODULE_BASES = frozenset(
    {
        "pytorch_lightning.LightningModule",
        "lightning.LightningModule",
        "lightning.pytorch.LightningModule",
        "lightning.pytorch.core.LightningModule",
        "pl.LightningModule",
        "transformers.PreTrainedModel",
        "mmcv.runner.BaseModule",
        "mmengine.model.BaseModule",
        "huggingface_hub.PyTorchModelHubMixin",
        "torch_geometric.nn.MessagePassing",
        "torch.jit.ScriptModule",
        "fairseq.models.BaseFairseqModel",
        "fairseq.models.FairseqEncoder",
        "fairseq.models.FairseqDecoder",
        "detectron2.modeling.Backbone",
        "espnet2.torch_utils.abs_espnet_model.AbsESPnetModel",
    }
)

# Losses and other classes of torch.nn that hold no state: building one in forward is harmless.
STATELESS_SUFFIXES = ("Loss", "Pool1d", "Pool2d", "Pool3d", "Pad1d", "Pad2d", "Pad3d", "Distance")
