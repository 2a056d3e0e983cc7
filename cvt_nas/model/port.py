"""Names of tensors in transformers' port of CvT, and the corresponding official names."""

_BEGINNINGS = (("stage", "cvt.encoder.stages."), ("norm.", "layernorm."), ("head.", "classifier."))
_PARTS = (
    (".patch_embed.proj.", ".embedding.convolution_embeddings.projection."),
    (".patch_embed.norm.", ".embedding.convolution_embeddings.normalization."),
    (".blocks.", ".layers."),
    *(
        (f".attn.conv_proj_{short}.{part}.", f".attention.attention.convolution_projection_{long}."
         f"convolution_projection.{whole}.")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
        for part, whole in (("conv", "convolution"), ("bn", "normalization"))
    ),
    *(
        (f".attn.proj_{short}.", f".attention.attention.projection_{long}.")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
    ),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),  # after the longer name that ends in it
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
)  # fmt: skip


def hugging_face_name(name: str) -> str:
    """The name in transformers' `CvtForImageClassification` of a tensor of the official state dict."""
    for ours, theirs in _PARTS:
        name = name.replace(ours, theirs)
    for ours, theirs in _BEGINNINGS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def official_name(name: str) -> str:
    """Inverse of `hugging_face_name`. Names that it never gives are unchanged."""
    for ours, theirs in _BEGINNINGS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            for our_part, their_part in _PARTS:
                name = name.replace(their_part, our_part)
            return name
    return name
