"""The model and the inputs that a file of reference numbers describes, in our terms."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unit_jax import outputs
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.data import batching
from unit_jax.interop import mmf
from unit_jax.models import flat
from unit_jax.outputs.labels.room import LabelTargets, ScoreTargets
from unit_jax.outputs.objects.targets import ATTRIBUTE_SLOTS, Objects, pad
from unit_jax.tasks import KINDS, TaskSpec
from unit_jax.tools.parity import recipe

Arrays = dict[str, np.ndarray]

# What the reference takes where a file's configuration does not say (MMF's unit/defaults.yaml).
DEFAULTS: Mapping[str, Any] = {
    "detection_loss_weight": 1.0,
    "keep_only_bert_cls": {},
    "loss_on_all_hs": False,
    "max_task_num": 256,
}
DEFAULT_ARGS: Mapping[str, Any] = {
    "lr_backbone": 1e-5,
    "backbone": "resnet50",
    "dilation": False,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "encoder_hidden_dim": 256,
    "decoder_hidden_dim": 256,
    "nheads": 8,
    "pre_norm": False,
    "pass_pos_and_query": True,
    "aux_loss": True,
    "use_bcl": False,
    "set_cost_class": 1.0,
    "set_cost_bbox": 5.0,
    "set_cost_giou": 2.0,
    "bbox_loss_coef": 5.0,
    "giou_loss_coef": 2.0,
    "attr_loss_coef": 1.0,
    "eos_coef": 0.1,
    "share_decoders": False,
    "residual_in_encoder": True,
    "use_task_embedding_in_img_encoder": False,
    "use_task_embedding_in_lang_encoder": False,
    "attribute_class_num": 401,
    "bert_config": {},
}
BN_EPS = 1e-5
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A file's model: settings, tasks, and weights by our paths."""

    meta: dict[str, Any]
    settings: settings_lib.Settings
    graph: nnx.GraphDef
    params: Arrays
    statistics: Arrays

    @property
    def model(self) -> settings_lib.ModelSettings:
        return self.settings.model


def build_case(
    meta: dict[str, Any], dtype: str, mask_padding: bool = False, per_image: bool = False
) -> Case:
    """Builds and fills the model that `meta` describes in the reference's own terms.

    Raises:
      ValueError: it asks for a model that UniT's configurations have not.
    """
    config = {**DEFAULTS, **meta["model_config"]}
    args = config["base_args"] = {**DEFAULT_ARGS, **config["base_args"]}
    if not args["pass_pos_and_query"] or args["backbone"] not in DEPTHS:
        raise ValueError(
            "the model needs pass_pos_and_query and a backbone that is one of "
            f"{', '.join(DEPTHS)}; it has {args['pass_pos_and_query']} and {args['backbone']}"
        )
    bert = args["bert_config"]
    model = settings_lib.ModelSettings(
        backbone=settings_lib.BackboneSettings(
            depths=DEPTHS[args["backbone"]],
            dilation=args["dilation"],
            bn_eps=recorded_bn_eps(meta),
        ),
        image_encoder=settings_lib.ImageEncoderSettings(
            width=args["encoder_hidden_dim"],
            layers=args["enc_layers"],
            residual=args["residual_in_encoder"],
            task_embedding=args["use_task_embedding_in_img_encoder"],
        ),
        text_encoder=settings_lib.TextEncoderSettings(
            vocab_size=bert.get("vocab_size", 30522),
            width=bert.get("hidden_size", 768),
            layers=bert.get("num_hidden_layers", 12),
            heads=bert.get("num_attention_heads", 12),
            mlp_width=bert.get("intermediate_size", 3072),
            max_positions=bert.get("max_position_embeddings", 512),
            task_embedding=args["use_task_embedding_in_lang_encoder"],
            task_rows=config["max_task_num"],
        ),
        decoder=settings_lib.DecoderSettings(
            width=args["decoder_hidden_dim"],
            layers=args["dec_layers"],
            shared=args["share_decoders"],
        ),
        heads=args["nheads"],
        mlp_width=args["dim_feedforward"],
        dropout=0.0,
        attention_dropout=0.0,
        pre_norm=args["pre_norm"],
        mask_padding=mask_padding,
        classify_all_layers=config["loss_on_all_hs"],
        dtype=cast(Any, dtype),
    )
    loss = settings_lib.LossSettings(
        normalisation="per_image" if per_image else "batch",
        auxiliary=args["aux_loss"],
        balanced=args["use_bcl"],
        no_object_weight=args["eos_coef"],
        class_cost=args["set_cost_class"],
        box_cost=args["set_cost_bbox"],
        giou_cost=args["set_cost_giou"],
        box_weight=args["bbox_loss_coef"],
        giou_weight=args["giou_loss_coef"],
        attribute_weight=args["attr_loss_coef"],
        detection_weight=config["detection_loss_weight"],
    )
    tasks = {}
    for group, datasets in args["num_queries"].items():  # `heads` may list more than are built
        for dataset in datasets:
            spec = task_spec(config, group, dataset)
            tasks[spec.name] = spec
    # Only training cases name an optimiser; data and run settings play no part.
    settings = settings_lib.Settings(
        tasks=tasks, model=model, loss=loss, optimizer=optimizer_settings(meta)
    )
    graph, params, statistics = flat.abstract(lambda: outputs.build(model, tasks, rngs=nnx.Rngs(0)))
    weights = make_weights({**params, **statistics}, args["share_decoders"])
    typed = {path: np.asarray(array, dtype) for path, array in weights.items()}
    return Case(
        meta,
        settings,
        graph,
        {path: typed[path] for path in params},
        {path: typed[path] for path in statistics},
    )


def recorded_bn_eps(meta: Mapping[str, Any]) -> float:
    """The epsilon of the frozen batch norms, wherever a file records it; else torchvision's."""
    groups = [("", meta)]
    for place, group in groups:  # grows on the way
        for key, value in group.items():
            path = f"{place}.{key}".lower()
            if isinstance(value, Mapping):
                groups.append((path, value))
            elif "eps" in path and re.search("bn|(?<!layer)(?<!layer_)norm", path):
                return float(value)
    return BN_EPS


def task_spec(config: Mapping, group: str, dataset: str) -> TaskSpec:
    """One data set of the reference's configuration as an entry of our task table."""
    if dataset not in mmf.TASKS:
        raise ValueError(f"data set {dataset} is none of UniT's: {', '.join(mmf.TASKS)}")
    args, head = config["base_args"], config["heads"][group][dataset]
    kind = {"detection": "detection", "vl": "vision_language", "glue": "language"}[group]
    soft = head.get("loss_type") == "binary_cross_entropy_with_logits"
    fields: dict[str, Any] = {
        **KINDS[kind],
        **({"output": "scores"} if soft else {}),
        "name": mmf.TASKS[dataset],
        "index": head["task_idx"],
        "num_queries": args["num_queries"][group][dataset],
        "num_labels": head["num_classes" if group == "detection" else "num_labels"],
        "num_attributes": args["attribute_class_num"] if head.get("use_attr") else 0,
        "max_tokens": args["bert_config"].get("max_position_embeddings", 512),
        "cls_only": config["keep_only_bert_cls"].get(group, {}).get(dataset, dataset != "vqa2"),
    }
    return TaskSpec(**fields)


def optimizer_settings(meta: Mapping, name: str = "adam_w") -> settings_lib.OptimizerSettings:
    """The recorded optimiser; model files name none, and only what is frozen matters to them."""
    given = {"lr": 5e-5, "eps": 1e-8, "weight_decay": 1e-4} | meta.get("optimizer", {}).get(
        "params", {}
    )
    b1, b2 = given.get("betas", (0.9, 0.999))
    rate = meta.get("lr_backbone", meta["model_config"]["base_args"].get("lr_backbone", 1e-5))
    return settings_lib.OptimizerSettings(
        name=cast(Any, name),
        learning_rate=given["lr"],
        backbone_learning_rate=rate,
        b1=b1,
        b2=b2,
        eps=given["eps"],
        weight_decay=given["weight_decay"],
        clip_norm=meta.get("max_grad_l2_norm", 0.1),
        warmup_steps=meta.get("num_warmup_steps", 2000),
        # Where its rate is 0 the reference freezes the whole backbone.
        frozen=("backbone.conv1", "backbone.layer1") if rate else ("backbone",),
    )


def make_weights(abstract: Mapping[str, Any], shared: bool) -> Arrays:
    """The recipe's weights for parameters and statistics of these shapes, by our paths."""
    names = mmf.to_mmf(
        {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in abstract.items()}
    )
    state = {
        name: recipe.make(name, list(zeros.shape), "float32", shared)
        for name, zeros in names.items()
    }
    return mmf.import_state(state, abstract)


def recorded_inputs(data: Mapping[str, np.ndarray], dataset: str) -> dict[str, Any]:
    """The inputs of one data set; what is there per image becomes a list."""
    inputs: dict[str, Any] = {}
    for key in data:
        if key.startswith(f"{dataset}/in/"):
            name, *number = key.removeprefix(f"{dataset}/in/").split("/")
            if number:
                inputs.setdefault(name, []).append((int(number[0]), data[key]))
            else:
                inputs[name] = data[key]
    return {
        name: [array for _, array in sorted(value, key=lambda item: item[0])]
        if isinstance(value, list)
        else value
        for name, value in inputs.items()
    }


def make_batch(spec: TaskSpec, inputs: Mapping[str, Any], rows: slice = slice(None)) -> Batch:
    """A batch of ours with some of the recorded examples, padded to the largest of them."""
    fields: dict[str, Any] = {}
    if spec.has_image:
        images = inputs["images"][rows]
        bucket = tuple(np.max([image.shape[:2] for image in images], axis=0))
        fields["images"], fields["image_sizes"] = batching.pad_images(images, bucket)
    if spec.has_text:
        fields["input_ids"] = inputs["input_ids"][rows]
        fields["token_mask"] = inputs["input_mask"][rows].astype(bool)
        fields["segment_ids"] = inputs["segment_ids"][rows]
    if spec.output == "objects":
        attributes = inputs.get("attributes")
        objects = [
            Objects(boxes, labels, np.zeros((len(labels), ATTRIBUTE_SLOTS)))
            for boxes, labels in zip(inputs["boxes"], inputs["labels"], strict=True)
        ]
        if attributes is not None:
            objects = [o._replace(attributes=a) for o, a in zip(objects, attributes, strict=True)]
        most = max(1, *(len(o.labels) for o in objects))
        # The recorded boxes are cxcywh in [0, 1] already.
        targets = pad(objects[rows], None, most, with_attributes=attributes is not None)
    elif spec.output == "scores":
        targets = ScoreTargets(inputs["targets"][rows])
    else:
        targets = LabelTargets(inputs["targets"][rows])
    return Batch(spec.name, targets=targets, **fields)


def concatenate(parts: Sequence[Any], axis: int) -> Any:
    """Pytrees of equal structure as one, along an axis of their leaves."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)
