"""The transformer block that reads the prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention; layers are named as in diffusers, so that PEFT's habits carry over.

    Args:
        size: C, features of a query token.
        context_size: D, features of a key and value token.
        head_size: Features of one head; C must be a multiple of it.
    """

    def __init__(self, size: int, context_size: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.to_q = nn.Linear(size, size, bias=False)
        self.to_k = nn.Linear(context_size, size, bias=False)
        self.to_v = nn.Linear(context_size, size, bias=False)
        self.to_out = nn.Linear(size, size)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Attend from tokens (B, N, C) to context (B or 1, L, D); returns (B, N, C)."""
        context = context.expand(tokens.shape[0], -1, -1)
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projected in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class FoldedAttention(nn.Module):
    """Cross-attention to a context that never changes.

    With K_h, V_h (L, head_size) constant for each head h, softmax(x Wq_hᵀ K_hᵀ / √d) V_h Wo_hᵀ is a linear layer,
    a softmax over L and a linear layer: queries and output projection fold into keys and values.

    Args:
        attention: The attention to fold.
        context: (1, L, D), the constant context.
    """

    def __init__(self, attention: Attention, context: Tensor) -> None:
        super().__init__()
        size, head_size = attention.to_q.in_features, attention.head_size
        heads, self.context_length = attention.to_q.out_features // head_size, context.shape[1]
        key, value = (layer(context[0]).unflatten(-1, (heads, head_size)) for layer in (attention.to_k, attention.to_v))
        query_weight = attention.to_q.weight.unflatten(0, (heads, head_size))
        output_weight = attention.to_out.weight.unflatten(1, (heads, head_size))
        query_bias = attention.to_q.bias  # of an attention that was made narrower
        self.to_logits = nn.Linear(size, heads * self.context_length, bias=query_bias is not None)
        self.to_out = nn.Linear(heads * self.context_length, attention.to_out.out_features)
        with torch.no_grad():
            logits_weight = torch.einsum("lhd,hdc->hlc", key, query_weight) / head_size**0.5
            self.to_logits.weight.copy_(logits_weight.flatten(0, 1))
            if query_bias is not None:
                logits_bias = torch.einsum("lhd,hd->hl", key, query_bias.unflatten(0, (heads, head_size)))
                self.to_logits.bias.copy_(logits_bias.flatten() / head_size**0.5)
            self.to_out.weight.copy_(torch.einsum("lhd,chd->chl", value, output_weight).flatten(1))
            self.to_out.bias.copy_(attention.to_out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend from tokens (B, N, C) to the folded context; returns (B, N, C)."""
        logits = self.to_logits(tokens).unflatten(-1, (-1, self.context_length))
        return self.to_out(logits.softmax(-1).flatten(2))


class GEGLU(nn.Module):
    """Gated GELU, x W1 · gelu(x W2) (Shazeer 2020, arXiv 2002.05202), (…, C) to (…, hidden)."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 2 * hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply it to tokens (…, C)."""
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention over the feature map, cross-attention to the prompt, feed-forward; each after a layer norm.

    The layout of diffusers' ``BasicTransformerBlock``, kept here in full because export folds its cross-attention.

    Args:
        size: C, channels of the feature map.
        token_size: D, features of a prompt token.
        head_size: Features of one attention head.
    """

    def __init__(self, size: int, token_size: int, head_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.self_attention = Attention(size, size, head_size)
        self.cross_attention = Attention(size, token_size, head_size)
        self.feed_forward = nn.Sequential(GEGLU(size, 4 * size), nn.Linear(4 * size, size))

    def forward(self, features: Tensor, prompt_tokens: Tensor | None) -> Tensor:
        """Transform features (B, C, H, W) by the prompt (B or 1, L, D); None once the prompt is folded."""
        height, width = features.shape[-2:]
        tokens = features.flatten(2).transpose(1, 2)
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        context = () if prompt_tokens is None else (prompt_tokens,)
        tokens = tokens + self.cross_attention(self.norm2(tokens), *context)
        tokens = tokens + self.feed_forward(self.norm3(tokens))
        return tokens.transpose(1, 2).unflatten(2, (height, width))
