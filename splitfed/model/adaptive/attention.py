"""What the class token looks at: the attention of the front's last block, read without unfusing it."""

from collections.abc import Sequence

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import torch
from timm.layers import Attention
from torch import Tensor, nn

from splitfed.errors import ModelError


class ClsAttention:
    """Reads the attention that CLS pays to all tokens in a block of a front, the last one unless its number, from 1 on,
    is named (ADC, arXiv 2509.15058, section 3).

    While `enabled`, a forward hook keeps the last output of that block's `qkv` layer. Attention stays fused, and
    nothing more is saved for backward: the map of one query is cheap to compute again. Raises ModelError where the
    block's attention is not timm's plain one, whose map would be another.
    """

    def __init__(self, front: nn.Module, block: int = 0) -> None:
        self.enabled = True
        self._qkv: Tensor | None = None
        self._of_chunks: Tensor | None = None
        self._attn = attn = check_readable(front, block)
        self._hook = attn.qkv.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.enabled:
            self._qkv = output.detach()

    def keep(self, chunks: Sequence[Tensor]) -> None:
        """Take what was read of chunks, for the next reading to be of them all, whatever passes until then."""
        self._of_chunks = torch.cat([*chunks])

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return the attention of the last batch, `[B, n]` float32, averaged over heads, rows summing to 1; and let go
        of what was kept. Raises RuntimeError when no batch passed since the last reading."""
        if (known := self._of_chunks) is not None:
            self._of_chunks = None
            return known
        if self._qkv is None:
            raise RuntimeError("no batch passed through the front since the attention was last read")
        qkv, self._qkv = self._qkv, None
        return class_attention(self._attn, qkv)

    def close(self) -> None:
        """Take the hook off the front."""
        self._hook.remove()
        self._qkv = None


def check_readable(front: nn.Module, block: int = 0) -> Attention:
    """Return the attention of a front's last block, or of that of this number, from 1 on. Raises ModelError where it is
    not timm's plain one, whose map would be another."""
    return readable(list(front.get_submodule("blocks").children())[block - 1])


def readable(block: nn.Module) -> Attention:
    """Return the attention of a block. Raises ModelError where it is not timm's plain one, whose map would be
    another."""
    attn = getattr(block, "attn", block)
    if type(attn) is not Attention:
        raise ModelError(f"CLS attention cannot be read from {type(attn).__name__}, only from timm's Attention")
    return attn


@torch.no_grad()
def class_attention(attn: Attention, qkv: Tensor) -> Tensor:
    """Return what the class token pays to all tokens, `[B, n]` float32, averaged over heads, rows summing to 1, from
    what the attention's `qkv` layer has made of them, `[B, n, 3 d]`."""
    with torch.autocast(qkv.device.type, enabled=False):
        dtype = attn.qkv.weight.dtype  # that of the norms too, where autocast made qkv narrower
        batch, tokens, _ = qkv.shape
        q, k, _ = qkv.reshape(batch, tokens, 3, attn.num_heads, -1).unbind(2)
        q = attn.q_norm(q[:, 0].to(dtype)) * attn.scale
        k = attn.k_norm(k.to(dtype))
        scores = (q.float().unsqueeze(1) * k.float()).sum(-1)  # a product of matrices would copy k first
        return scores.softmax(1).mean(2)
