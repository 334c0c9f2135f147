"""The train step in PyTorch: matching by scipy, DETR's set loss, clipping, AdamW."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F

from unit_jax.batch import Batch
from unit_jax.interop.mmf import DATASETS
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec
from unit_jax.tools.speed.torch_model import Unit


def corners(boxes):
    """(centre x, centre y, width, height) to (left, top, right, bottom)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def generalised_iou(a, b):
    """Of xyxy boxes, element by element."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).relu()
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    inside, hull = size.prod(-1), hull.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inside
    return inside / union - (hull - union) / hull


@dataclasses.dataclass
class Reference:
    """A model with its optimiser; computes in `model.dtype` of the settings by autocast.

    Attributes:
      matching_ms: what matching took in the last step, the wait for the costs not counted.
    """

    settings: Settings
    model: Unit
    matching_ms: float = 0.0

    def __post_init__(self):
        frozen = tuple(f"unit_base_model.backbone.0.body.{part}" for part in ("conv1", "layer1"))
        learned = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
            learned += [parameter] if parameter.requires_grad else []
        own = self.settings.optimizer
        self._learned = learned
        self._optimizer = torch.optim.AdamW(
            learned, own.learning_rate, (own.b1, own.b2), own.eps, own.weight_decay, fused=True
        )
        self._forward = self.model

    @property
    def device(self) -> torch.device:
        return self._learned[0].device

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def compile(self) -> None:
        """torch.compile of the model."""
        self._forward = torch.compile(self.model)

    def put(self, batch: Batch) -> dict[str, Any]:
        """The batch on the device: its task, and its arrays by name."""
        given = {**vars(batch), **vars(batch.targets)}
        tensors = {
            name: torch.from_numpy(np.asarray(x)).to(self.device, non_blocking=True)
            for name, x in given.items()
            if isinstance(x, np.ndarray)
        }
        wide = ("input_ids", "segment_ids", "labels", "attributes")
        tensors |= {name: x.long() for name, x in tensors.items() if name in wide}
        return {"task": batch.task, **tensors}

    def synchronise(self, *others) -> None:
        """Waits for all that was started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def evaluation_loss(self, batch: Mapping[str, Any]) -> float:
        """The loss without dropout."""
        self.model.eval()
        with torch.no_grad():
            loss = float(self.loss(batch))
        self.model.train()
        return loss

    def step(self, batch: Mapping[str, Any]) -> None:
        """One update."""
        self.matching_ms = 0.0
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self._learned, self.settings.optimizer.clip_norm)
        self._optimizer.step()
        # Zeros, as the reference leaves behind: whatever was reached once is always updated.
        self._optimizer.zero_grad(set_to_none=False)

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        task = batch["task"]
        low = self.settings.model.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            hidden, logits, boxes = self._forward(task, batch)
            spec = self.settings.tasks[task]
            if boxes is not None:
                return self.set_loss(spec, hidden, logits.float(), boxes, batch)
        logits = logits.float()
        if spec.output == "scores":
            return (F.softplus(logits) - batch["answer_scores"] * logits).sum(-1).mean()
        return F.cross_entropy(logits, batch["labels"])

    def set_loss(self, spec: TaskSpec, hidden, logits, boxes, batch) -> torch.Tensor:
        """DETR's loss on all layers, normalised per image as 64 devices with one image each."""
        own = self.settings.loss
        if own.normalisation != "per_image" or own.balanced or not own.auxiliary:
            raise ValueError('--reference torch has the loss of normalisation="per_image" only')
        mask, labels, wanted = batch["object_mask"], batch["labels"], batch["boxes_cxcywh"]
        with torch.no_grad():
            index = labels[None, :, None].expand(len(logits), -1, logits.shape[2], -1)
            costs = own.box_cost * torch.cdist(boxes, wanted[None], p=1)
            costs -= own.class_cost * logits.softmax(-1).gather(-1, index)
            costs -= own.giou_cost * generalised_iou(
                corners(boxes)[:, :, :, None], corners(wanted)[None, :, None]
            )
            queries = self.match(costs, mask)
        # [layers, matched]: image, object and query of each pair, object by object.
        image, number = mask.nonzero(as_tuple=True)
        layer = torch.arange(len(logits), device=self.device)[:, None].expand_as(queries)
        classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=self.device)
        classes[layer, image.expand_as(queries), queries] = labels[image, number].expand_as(queries)
        losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none")
        weights = torch.where(classes == logits.shape[-1] - 1, own.no_object_weight, 1.0)
        losses = losses.view_as(weights) * weights
        total = own.class_weight * (losses.sum(-1) / weights.sum(-1)).mean(-1).sum()
        matched_boxes = boxes[layer, image.expand_as(queries), queries]
        true = wanted[image, number]
        count = mask.sum().clamp(min=1)
        total = total + own.box_weight * (matched_boxes - true).abs().sum() / count
        overlap = generalised_iou(corners(matched_boxes), corners(true))
        total = total + own.giou_weight * (1 - overlap).sum() / count
        if spec.num_attributes and "attributes" in batch:
            state = hidden[layer, image.expand_as(queries), queries]
            head = self.model.det_losses[DATASETS[spec.name][1]].attribute_head
            given = batch["attributes"][image, number]
            classes = labels[image, number].expand_as(queries)
            log_probabilities = head(state, classes).float().log_softmax(-1)
            terms = -log_probabilities.gather(-1, given.clamp(min=0).expand(len(logits), -1, -1))
            terms = 0.5 * (terms * (given >= 0)).sum(-1) / (given >= 0).sum(-1).clamp(min=1)
            shape = (len(logits), len(mask))
            sums = torch.zeros(shape, device=self.device).index_add(1, image, terms)
            counts = torch.zeros(shape, device=self.device).index_add(
                1, image, (terms != 0).float()
            )
            total = total + own.attribute_weight * (sums / counts.clamp(min=1)).mean(-1).sum()
        return own.detection_weight * total

    def match(self, costs, mask):
        """Queries of the real objects, [layers, matched], solved by scipy on the host."""
        self.synchronise()
        start = time.perf_counter()
        host, real = costs.cpu().numpy(), mask.cpu().numpy()
        queries = np.zeros((len(host), real.sum()), np.int64)
        begin = 0
        for image, objects in enumerate(real):
            end = begin + objects.sum()
            for layer in range(len(host)):
                rows, columns = scipy.optimize.linear_sum_assignment(host[layer, image][:, objects])
                queries[layer, begin + columns] = rows
            begin = end
        queries = torch.from_numpy(queries).to(self.device)
        self.matching_ms = 1000 * (time.perf_counter() - start)
        return queries


def build(settings: Settings, weights: Mapping[str, np.ndarray]) -> Reference:
    """The model with these weights (MMF's names), on the GPU where there is one.

    Raises:
      ValueError: the weights are not those of this model.
    """
    model = Unit(settings)
    state = {name: torch.tensor(np.asarray(x)) for name, x in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # What BERT keeps that is no parameter and follows from its config.
    missing = [name for name in missing if not name.endswith(("position_ids", "token_type_ids"))]
    if missing or unexpected:
        raise ValueError(
            f"the two models differ: only PyTorch has {missing}, only ours has {unexpected}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # Channels last is what PyTorch's convolutions are fastest with.
    return Reference(settings, model.train().to(device, memory_format=torch.channels_last))
