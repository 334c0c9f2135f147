"""The same architecture in PyTorch, for tools/benchmark.py to measure beside ours.

Built from torch's and transformers' modules, with the names of MMF's UniT, so that our weights go
into it (`interop.mmf`) and both sides must give the same loss: ResNet-50-DC5 with frozen batch
norm, DETR's encoder and decoder, BERT, the heads. It has what one step needs and nothing else;
padding is not masked inside the backbone.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from unit_jax import outputs as rooms
from unit_jax.interop.mmf import DATASETS
from unit_jax.models.unit import PIXEL_MEAN, PIXEL_STD
from unit_jax.settings import ModelSettings, Settings
from unit_jax.tasks import TaskSpec


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))
        self.eps = eps

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class Bottleneck(nn.Module):
    """torchvision's: the stride is the 3x3 convolution's."""

    def __init__(self, inputs, width, stride, dilation, eps, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = FrozenBatchNorm(width, eps)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = FrozenBatchNorm(4 * width, eps)
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), FrozenBatchNorm(4 * width, eps)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The backbone."""

    def __init__(self, settings):
        super().__init__()
        self.conv1 = nn.Conv2d(3, settings.width, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(settings.width, settings.bn_eps)
        channels = settings.width
        for stage, depth in enumerate(settings.depths):
            width = settings.width * 2**stage
            dilated = settings.dilation and stage == 3
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 and not dilated else 1
                dilation = 2 if dilated and block > 0 else 1
                blocks.append(
                    Bottleneck(channels, width, stride, dilation, settings.bn_eps, block == 0)
                )
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = channels

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Layer(nn.Module):
    """DETR's layer, post-norm: of the encoder, or with cross-attention of the decoder."""

    def __init__(self, width: int, settings: ModelSettings, crosses: bool):
        super().__init__()
        attention = dict(dropout=settings.attention_dropout, batch_first=True)
        self.self_attn = nn.MultiheadAttention(width, settings.heads, **attention)
        if crosses:
            self.multihead_attn = nn.MultiheadAttention(width, settings.heads, **attention)
            self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, settings.mlp_width)
        self.linear2 = nn.Linear(settings.mlp_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def feed_forward(self, x):
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def __init__(self, width, settings):
        super().__init__(width, settings, crosses=False)

    def forward(self, x, positions, padding):
        q = x + positions
        y, _ = self.self_attn(q, q, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + self.dropout(y))
        return self.norm2(x + self.feed_forward(x))


class DecoderLayer(Layer):
    """Self-attention of the queries, cross-attention, feed-forward."""

    def __init__(self, width, settings):
        super().__init__(width, settings, crosses=True)

    def forward(self, x, queries, memory, positions, padding):
        q = x + queries
        y, _ = self.self_attn(q, q, x, need_weights=False)
        x = self.norm1(x + self.dropout(y))
        y, _ = self.multihead_attn(
            x + queries, memory + positions, memory, key_padding_mask=padding, need_weights=False
        )
        x = self.norm2(x + self.dropout(y))
        return self.norm3(x + self.feed_forward(x))


class Stack(nn.Module):
    """Layers, and the norm of the decoder's outputs."""

    def __init__(self, layers, norm_width: int | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm_width:
            self.norm = nn.LayerNorm(norm_width)


class Holder(nn.Module):
    """A module that only gives its parts a name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Unit(nn.Module):
    """UniT; `forward` answers one batch of one task."""

    def __init__(self, settings: Settings):
        super().__init__()
        model = settings.model
        if model.pre_norm or model.classify_all_layers or not model.image_encoder.residual:
            raise ValueError("--reference torch has the paper's model: post-norm, residual encoder")
        own, text, width = model.image_encoder, model.text_encoder, model.decoder.width
        self.settings = settings
        body = ResNet(model.backbone)

        def decoder() -> Stack:
            return Stack([DecoderLayer(width, model) for _ in range(model.decoder.layers)], width)

        def by_group(make) -> nn.ModuleDict:
            groups: dict[str, dict] = {}
            for task, spec in settings.tasks.items():
                group, dataset = DATASETS[task]
                groups.setdefault(group, {})[dataset] = make(spec)
            return nn.ModuleDict({g: nn.ModuleDict(parts) for g, parts in groups.items()})

        transformer = dict(
            encoder=Stack([EncoderLayer(own.width, model) for _ in range(own.layers)])
        )
        if own.task_embedding:
            transformer["task_embeddings_enc"] = nn.Embedding(256, own.width)
        if own.width != width:
            transformer["enc2dec_proj"] = nn.Linear(own.width, width)
            transformer["pos_embed_proj"] = nn.Linear(own.width, width)
        if model.decoder.shared:
            transformer["decoder"] = decoder()
        else:
            transformer["decoders"] = by_group(lambda spec: decoder())
        self.unit_base_model = Holder(
            backbone=nn.ModuleList([Holder(body=body)]),
            input_proj=nn.Conv2d(body.channels, own.width, 1),
            transformer=Holder(**transformer),
            query_embeds=by_group(lambda spec: nn.Embedding(spec.num_queries, width)),
        )
        bert = BertConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=text.mlp_width,
            max_position_embeddings=text.max_positions,
            hidden_dropout_prob=model.dropout,
            attention_probs_dropout_prob=model.attention_dropout,
            attn_implementation="sdpa",  # ty: ignore[unknown-argument] -- one of its **kwargs
        )
        self.bert_model = Holder(module=BertModel(bert))
        if text.task_embedding:
            self.task_embeddings_lang = nn.Embedding(text.task_rows, text.width)
        self.bert_projection = nn.Linear(text.width, width)
        self.bert_pos_projection = nn.Linear(text.width, width)
        self.class_embeds, self.bbox_embeds, self.det_losses = (nn.ModuleDict() for _ in range(3))
        classifiers: dict[str, nn.ModuleDict] = {}
        for task, spec in settings.tasks.items():
            group, dataset = DATASETS[task]
            if rooms.room(spec).matches:
                self.class_embeds[dataset] = nn.Linear(width, spec.num_labels + 1)
                self.bbox_embeds[dataset] = Stack([nn.Linear(width, n) for n in (width, width, 4)])
                if spec.num_attributes:
                    self.det_losses[dataset] = Holder(attribute_head=AttributeHead(spec, width))
            else:
                transform = Holder(
                    dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, 1e-12)
                )
                labels = nn.Linear(width, spec.num_labels)
                classifiers.setdefault(group, nn.ModuleDict())[dataset] = nn.ModuleList(
                    [transform, labels]
                )
        self.classifiers = nn.ModuleDict(classifiers)

    def forward(self, task: str, batch: Mapping[str, torch.Tensor]):
        """(hidden states [layers, batch, queries, width], logits, boxes or None)."""
        spec = self.settings.tasks[task]
        parts = []
        if spec.has_image:
            parts.append(self.image_memory(spec, batch))
        if spec.has_text:
            parts.append(self.text_memory(spec, batch))
        memory, positions, padding = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        group, dataset = DATASETS[task]
        transformer = self.unit_base_model.transformer
        shared = self.settings.model.decoder.shared
        decoder = transformer.decoder if shared else transformer.decoders[group][dataset]
        queries = self.unit_base_model.query_embeds[group][dataset].weight
        queries = queries[None].expand(len(memory), -1, -1)
        x, states = torch.zeros_like(queries), []
        for layer in decoder.layers:
            x = layer(x, queries, memory, positions, padding)
            states.append(decoder.norm(x))
        hidden = torch.stack(states)
        if rooms.room(spec).matches:
            boxes = hidden
            for number, linear in enumerate(self.bbox_embeds[dataset].layers):
                boxes = linear(boxes if number == 0 else F.relu(boxes))
            return hidden, self.class_embeds[dataset](hidden), boxes.float().sigmoid()
        transform, labels = self.classifiers[group][dataset]
        x = F.dropout(hidden[-1, :, 0], self.settings.model.dropout, self.training)
        return hidden, labels(transform.LayerNorm(F.gelu(transform.dense(x)))), None

    def image_memory(self, spec: TaskSpec, batch):
        base = self.unit_base_model
        pixels = batch["images"].permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.from_numpy(x).to(pixels.device)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD)
        )
        height, width = pixels.shape[2:]
        real = _inside(batch["image_sizes"], height, width)
        pixels = ((pixels - mean) / std) * real[:, None]
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # as `build` lays weights out
        features = base.input_proj(base.backbone[0].body(pixels))
        real = F.interpolate(real[:, None].float(), features.shape[2:])[:, 0].bool()
        positions = sine_positions(real, features.shape[1]).to(features.dtype)
        x, positions = features.flatten(2).mT, positions.flatten(1, 2)
        padding = ~real.flatten(1)
        y, y_positions, y_padding = x, positions, padding
        transformer = base.transformer
        with_task = hasattr(transformer, "task_embeddings_enc")
        if with_task:
            token = transformer.task_embeddings_enc.weight[spec.index].to(x.dtype)
            y = torch.cat([token.expand(len(x), 1, -1), x], 1)
            y_positions = F.pad(positions, (0, 0, 1, 0))
            y_padding = F.pad(padding, (1, 0), value=False)
        for layer in transformer.encoder.layers:
            y = layer(y, y_positions, y_padding)
        y = x + y[:, int(with_task) :]
        if hasattr(transformer, "enc2dec_proj"):
            y, positions = transformer.enc2dec_proj(y), transformer.pos_embed_proj(positions)
        return y, positions, padding

    def text_memory(self, spec: TaskSpec, batch):
        bert = self.bert_model.module
        x = bert.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["segment_ids"])
        mask = batch["token_mask"]
        with_task = hasattr(self, "task_embeddings_lang")
        if with_task:
            token = self.task_embeddings_lang.weight[spec.index].to(x.dtype)
            x = torch.cat([token.expand(len(x), 1, -1), x], 1)
            mask = F.pad(mask, (1, 0), value=True)
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
        bias = bias.masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None, :]
        x = bert.encoder(x, attention_mask=bias).last_hidden_state[:, int(with_task) :]
        count = 1 if spec.cls_only else x.shape[1]
        positions = self.bert_pos_projection(bert.embeddings.position_embeddings.weight[:count])
        return (
            self.bert_projection(x[:, :count]),
            positions.expand(len(x), -1, -1),
            ~batch["token_mask"][:, :count],
        )


class AttributeHead(nn.Module):
    """Attribute logits of hidden states and their classes."""

    def __init__(self, spec: TaskSpec, width: int):
        super().__init__()
        self.cls_embed = nn.Embedding(spec.num_labels + 1, 256)
        self.attr_linear1 = nn.Linear(width + 256, 512)
        self.attr_linear2 = nn.Linear(512, spec.num_attributes)

    def forward(self, hidden, classes):
        x = torch.cat([hidden, self.cls_embed(classes).to(hidden.dtype)], -1)
        return F.relu(self.attr_linear2(self.attr_linear1(x)))


def _inside(sizes, height: int, width: int):
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def sine_positions(real, features: int):
    """DETR's, [batch, height, width, features]."""
    half = features // 2
    index = torch.arange(half, device=real.device, dtype=torch.float32)
    frequency = 10000 ** (2 * (index // 2) / half)
    encoded = []
    for axis in (1, 2):
        place = real.cumsum(axis, dtype=torch.float32)
        extent = place[:, -1:] if axis == 1 else place[:, :, -1:]
        angle = (place / (extent + 1e-6) * (2 * math.pi))[..., None] / frequency
        encoded.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(3))
    return torch.cat(encoded, -1)
