"""The reference's weights: MMF's UniT state dicts, in both directions.

`import_state` and `export_state` are for whole models and exact: export(import(x)) gives x to the
bit, aliases and buffers included. `to_ours`, `to_ours_partly` and `to_mmf` translate any part.

A state dict of MMF names some tensors twice. BERT's embeddings stand under `bert_model.module.` and
`bert_model.`, and a shared decoder under `transformer.decoder.` and once more for every data set.
They are read once and all written. It also holds two kinds of buffers that follow from the rest:
BERT's `position_ids` and the class weights `empty_weight`.
"""

from collections.abc import Mapping

import numpy as np

from unit_jax.interop.rules import (
    ATTENTION,
    CONV,
    FROZEN_NORM,
    LINEAR,
    NORM,
    POINTWISE,
    TABLE,
    Arrays,
    Rule,
    RuleTable,
)
from unit_jax.models.flat import task_of

# Our task: MMF's group of data sets and its name there.
DATASETS = {
    "coco": ("detection", "detection_coco"),
    "visual_genome": ("detection", "detection_visual_genome"),
    "vqa2": ("vl", "vqa2"),
    "snli_ve": ("vl", "visual_entailment"),
    "qnli": ("glue", "glue_qnli"),
    "mnli": ("glue", "glue_mnli_mismatched"),
    "qqp": ("glue", "glue_qqp"),
    "sst2": ("glue", "glue_sst2"),
}
TASKS = {dataset: task for task, (_, dataset) in DATASETS.items()}

_BODY = "unit_base_model.backbone.0.body"
_TRANSFORMER = "unit_base_model.transformer"
_BERT = "bert_model.module"

_ENCODERS = [
    Rule(f"{_BODY}.conv1", "backbone.conv1", CONV),
    Rule(f"{_BODY}.bn1", "backbone.bn1", FROZEN_NORM),
    Rule(f"{_BODY}.layer#.#.conv#", "backbone.layer#.#.conv#", CONV),
    Rule(f"{_BODY}.layer#.#.bn#", "backbone.layer#.#.bn#", FROZEN_NORM),
    Rule(f"{_BODY}.layer#.#.downsample.0", "backbone.layer#.#.shortcut_conv", CONV),
    Rule(f"{_BODY}.layer#.#.downsample.1", "backbone.layer#.#.shortcut_bn", FROZEN_NORM),
    Rule("unit_base_model.input_proj", "image_encoder.input_projection", POINTWISE),
    Rule(f"{_TRANSFORMER}.task_embeddings_enc", "image_encoder.task_embedding", TABLE),
    Rule(
        f"{_TRANSFORMER}.encoder.layers.#.self_attn", "image_encoder.layers.#.attention", ATTENTION
    ),
    Rule(
        f"{_TRANSFORMER}.encoder.layers.#.linear#",
        "image_encoder.layers.#.feed_forward.linear#",
        LINEAR,
    ),
    Rule(f"{_TRANSFORMER}.encoder.layers.#.norm#", "image_encoder.layers.#.norm#", NORM),
    Rule(f"{_TRANSFORMER}.encoder.norm", "image_encoder.norm", NORM),
    Rule(f"{_TRANSFORMER}.enc2dec_proj", "image_encoder.memory_projection", LINEAR),
    Rule(f"{_TRANSFORMER}.pos_embed_proj", "image_encoder.position_projection", LINEAR),
    Rule(f"{_BERT}.embeddings.word_embeddings", "text_encoder.word_embedding", TABLE),
    Rule(f"{_BERT}.embeddings.position_embeddings", "text_encoder.position_embedding", TABLE),
    Rule(f"{_BERT}.embeddings.token_type_embeddings", "text_encoder.segment_embedding", TABLE),
    Rule(f"{_BERT}.embeddings.LayerNorm", "text_encoder.embedding_norm", NORM),
    *[
        Rule(
            f"{_BERT}.encoder.layer.#.attention.self.{part}",
            f"text_encoder.layers.#.attention.{part}",
            LINEAR,
        )
        for part in ("query", "key", "value")
    ],
    Rule(
        f"{_BERT}.encoder.layer.#.attention.output.dense",
        "text_encoder.layers.#.attention.out",
        LINEAR,
    ),
    Rule(
        f"{_BERT}.encoder.layer.#.attention.output.LayerNorm", "text_encoder.layers.#.norm1", NORM
    ),
    Rule(
        f"{_BERT}.encoder.layer.#.intermediate.dense",
        "text_encoder.layers.#.feed_forward.linear1",
        LINEAR,
    ),
    Rule(
        f"{_BERT}.encoder.layer.#.output.dense",
        "text_encoder.layers.#.feed_forward.linear2",
        LINEAR,
    ),
    Rule(f"{_BERT}.encoder.layer.#.output.LayerNorm", "text_encoder.layers.#.norm2", NORM),
    Rule(f"{_BERT}.pooler.dense", "text_encoder.pooler", LINEAR),
    Rule("task_embeddings_lang", "text_encoder.task_embedding", TABLE),
    Rule("bert_projection", "text_encoder.memory_projection", LINEAR),
    Rule("bert_pos_projection", "text_encoder.position_projection", LINEAR),
]


def _decoder_rules(theirs: str, ours: str) -> list[Rule]:
    layer, our_layer = f"{theirs}.layers.#", f"{ours}.layers.#"
    return [
        Rule(f"{layer}.self_attn", f"{our_layer}.self_attention", ATTENTION),
        Rule(f"{layer}.multihead_attn", f"{our_layer}.cross_attention", ATTENTION),
        Rule(f"{layer}.linear#", f"{our_layer}.feed_forward.linear#", LINEAR),
        Rule(f"{layer}.norm#", f"{our_layer}.norm#", NORM),
        Rule(f"{theirs}.norm", f"{ours}.norm", NORM),
    ]


def _task_rules(task: str, group: str, dataset: str) -> list[Rule]:
    head = f"heads.{task}"
    rules = [
        Rule(f"unit_base_model.query_embeds.{group}.{dataset}", f"queries.{task}", TABLE),
        *_decoder_rules(f"{_TRANSFORMER}.decoders.{group}.{dataset}", f"decoders.{task}"),
    ]
    if group == "detection":
        attributes = f"det_losses.{dataset}.attribute_head"
        return [
            *rules,
            Rule(f"class_embeds.{dataset}", f"{head}.classes", LINEAR),
            Rule(f"bbox_embeds.{dataset}.layers.#", f"{head}.boxes.#", LINEAR),
            Rule(f"{attributes}.cls_embed", f"{head}.attributes.class_embedding", TABLE),
            Rule(f"{attributes}.attr_linear#", f"{head}.attributes.linear#", LINEAR),
        ]
    return [
        *rules,
        Rule(f"classifiers.{group}.{dataset}.0.dense", f"{head}.transform", LINEAR),
        Rule(f"classifiers.{group}.{dataset}.0.LayerNorm", f"{head}.norm", NORM),
        Rule(f"classifiers.{group}.{dataset}.1", f"{head}.labels", LINEAR),
    ]


RULES = RuleTable(
    [
        *_ENCODERS,
        *_decoder_rules(f"{_TRANSFORMER}.decoder", "decoder"),
        *[rule for task, names in DATASETS.items() for rule in _task_rules(task, *names)],
    ]
)

_EMBEDDINGS = f"{_BERT}.embeddings."
_EMBEDDINGS_ALIAS = "bert_model.embeddings."
_SHARED_DECODER = f"{_TRANSFORMER}.decoder."


def import_state(state: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Arrays:
    """A whole MMF UniT as our arrays.

    Args:
      state: tensors by MMF's names; a leading `module.` and the old spelling `detr_model.` are
        understood.
      expected: parameters and statistics of the model to fill, by path; anything with a shape.

    Returns:
      exactly the paths of `expected`.

    Raises:
      ValueError: one message with every tensor that is missing, unexpected or mis-shaped.
    """
    arrays, unknown = to_ours_partly(state)
    return _complete(arrays, unknown, expected)


def import_tasks(
    state: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> tuple[Arrays, tuple[str, ...]]:
    """Like `import_state` for a model of fewer tasks than the file's: (arrays, the tasks that were
    left aside)."""
    arrays, unknown = to_ours_partly(state)
    wanted = {task_of(path) for path in expected}
    skipped = {task_of(path) for path in arrays} - wanted
    arrays = {path: array for path, array in arrays.items() if task_of(path) in wanted | {""}}
    return _complete(arrays, unknown, expected), tuple(t for t in DATASETS if t in skipped)


def _complete(arrays: Arrays, unknown: list[str], expected: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays, if they are exactly those of `expected`."""
    problems = [
        f"missing: {RULES.name(path) or 'no name in MMF'} (our {path})"
        for path in expected
        if path not in arrays
    ]
    problems += [f"unexpected: {name}" for name in unknown]
    problems += [
        f"unexpected: {RULES.name(path)} (our {path})" for path in arrays if path not in expected
    ]
    problems += [
        f"wrong shape: {RULES.name(path)} (our {path}): {arrays[path].shape}, "
        f"the model has {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in arrays and arrays[path].shape != tuple(leaf.shape)
    ]
    if problems:
        raise ValueError(
            f"the MMF weights do not fit the model of this config, in {len(problems)} entries:\n  "
            + "\n  ".join(problems)
        )
    return {path: arrays[path] for path in expected}


def export_state(arrays: Mapping[str, np.ndarray], no_object_weight: float = 0.1) -> Arrays:
    """A whole model of ours as MMF's state dict, with all aliases and buffers.

    Args:
      arrays: parameters and statistics by path.
      no_object_weight: of the class loss; MMF keeps it in its weights.

    Raises:
      ValueError: a path has no name in MMF (another task than the published ones, say), or the
        model is not whole.
    """
    state = to_mmf(arrays)
    tasks = [path.split(".")[1] for path in arrays if path.startswith("queries.")]
    table = arrays.get("text_encoder.position_embedding")
    if not tasks or table is None:
        raise ValueError("not a whole UniT: it has no queries or no text encoder")
    state[f"{_EMBEDDINGS}position_ids"] = np.arange(table.shape[0], dtype=np.int64)[None]
    for name in list(state):
        if name.startswith(_EMBEDDINGS):
            state[_EMBEDDINGS_ALIAS + name.removeprefix(_EMBEDDINGS)] = state[name]
        elif name.startswith(_SHARED_DECODER):
            rest = name.removeprefix(_SHARED_DECODER)
            for task in tasks:
                state[f"{_TRANSFORMER}.decoders.{'.'.join(DATASETS[task])}.{rest}"] = state[name]
    for task in tasks:
        group, dataset = DATASETS[task]
        if group == "detection":
            weights = np.ones(arrays[f"heads.{task}.classes.bias"].shape, np.float32)
            weights[-1] = no_object_weight
            state[f"det_losses.{dataset}.empty_weight"] = weights
    return state


def to_ours(state: Mapping[str, np.ndarray]) -> Arrays:
    """Any part of an MMF state dict as our arrays by path; nothing may be unknown.

    Raises:
      ValueError: lists every name that is none of UniT's.
    """
    arrays, unknown = to_ours_partly(state)
    if unknown:
        raise ValueError("not tensors of UniT:\n  " + "\n  ".join(unknown))
    return arrays


def to_ours_partly(state: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str]]:
    """What our model can have of a state dict, by path, and the names that it cannot.

    Aliases and derived buffers are neither.

    Raises:
      ValueError: an alias holds other numbers than what it stands for, a tensor is there under
        two spellings, or has a shape that no model could have.
    """
    spelled: dict[str, np.ndarray] = {}
    originals: dict[str, str] = {}
    shared = any(_spelling(name).startswith(_SHARED_DECODER) for name in state)
    problems = []
    # What stands under its own name goes before its aliases.
    for name in sorted(state, key=lambda name: _canonical(_spelling(name), shared) != name):
        spelling = _spelling(name)
        canonical = _canonical(spelling, shared)
        if canonical.endswith((".position_ids", ".empty_weight")):
            continue
        if canonical not in spelled:
            spelled[canonical] = state[name]
            originals[canonical] = name
        elif not _same(state[name], spelled[canonical]):
            problems.append(f"{name} and {originals[canonical]} are one tensor but differ")
    if problems:
        raise ValueError("contradicting weights:\n  " + "\n  ".join(problems))
    arrays, unknown = RULES.to_ours(spelled)
    return arrays, [originals[name] for name in unknown]


def to_mmf(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Any part of our arrays under MMF's names, each once (no aliases, no buffers).

    Raises:
      ValueError: lists every path that has no name in MMF.
    """
    state, unknown = RULES.to_theirs(arrays)
    if unknown:
        raise ValueError(
            "parameters that MMF's UniT does not have (its tasks are "
            f"{', '.join(DATASETS)}):\n  " + "\n  ".join(unknown)
        )
    return state


def _spelling(name: str) -> str:
    """Today's spelling: without the wrapper of distributed training, `detr_model` renamed."""
    name = name.removeprefix("module.")
    if name.startswith("detr_model."):
        name = "unit_base_model." + name.removeprefix("detr_model.")
    return name


def _canonical(name: str, shared: bool) -> str:
    """The first of the names that a tensor goes by."""
    if name.startswith(_EMBEDDINGS_ALIAS):
        return _EMBEDDINGS + name.removeprefix(_EMBEDDINGS_ALIAS)
    own = f"{_TRANSFORMER}.decoders."
    if shared and name.startswith(own):
        return _SHARED_DECODER + name.removeprefix(own).split(".", 2)[2]
    return name


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.shape == b.shape and a.tobytes() == b.tobytes())
