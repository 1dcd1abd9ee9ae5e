"""pi0 at sizes that take seconds, and a tokenizer to read tasks with."""

from pathlib import Path
from typing import Any

import torch

from robolearn.policies.pi0 import Pi0Policy
from robolearn.types import Batch, Feature, Spec

VOCABULARY = 300
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
}
TINY: dict[str, Any] = {
    "vision": VISION,
    "language": LANGUAGE,
    "expert": {"intermediate_size": 48},
    "proj_width": 16,
    "chunk_size": 4,
    "n_action_steps": 4,
    "max_state_dim": 16,
    "max_action_dim": 16,
    "resize_imgs_with_padding": [28, 28],
    "num_steps": 3,
    "dtype": "float32",
}


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of single bytes with a start token, as transformers saves it. Returns `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "<bos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>")
    fast.save_pretrained(folder)
    return folder


def make_spec(dim: int = 3, cameras: int = 1, size: tuple[int, int] = (32, 40)) -> Spec:
    """State and action of `dim` numbers, images of `size`."""
    images = {f"observation.images.{i}": Feature("VISUAL", (3, *size)) for i in range(cameras)}
    return Spec({**images, "observation.state": Feature("STATE", (dim,))}, Feature("ACTION", (dim,)), 10.0)


def make_policy(spec: Spec | None = None, seed: int = 0, **options: Any) -> Pi0Policy:
    """A tiny policy whose weights are all drawn anew, norms too."""
    torch.manual_seed(seed)
    policy = Pi0Policy(spec or make_spec(), **{**TINY, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            scale = 0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return policy


def make_batch(spec: Spec | None = None, size: int = 2, chunk: int = 4, words: int = 6) -> Batch:
    """A normalised batch of noise; the last sample has fewer words and its last action is padding."""
    spec = spec or make_spec()
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch: Batch = {}
    for key, feature in spec.observation.items():
        value = noise(size, 1, *feature.shape)
        batch[key] = value.sigmoid() if feature.kind == "VISUAL" else value
    batch["action"] = noise(size, chunk, *spec.action.shape)
    batch["action_is_pad"] = torch.zeros(size, chunk, dtype=torch.bool)
    batch["action_is_pad"][-1, -1] = True
    batch["task_tokens"] = torch.randint(3, VOCABULARY, (size, words), generator=generator)
    batch["task_mask"] = torch.ones(size, words, dtype=torch.bool)
    batch["task_mask"][-1, words // 2 :] = False
    return batch
