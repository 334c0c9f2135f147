"""MMF's names and layouts: exact both ways, errors that list everything."""

import json
import lzma
import math

import numpy as np
import pytest
from flax import nnx

from configs import unit
from tests import REFERENCE_FILES
from unit_jax import outputs
from unit_jax import settings as settings_lib
from unit_jax.interop import mmf, rules
from unit_jax.models import flat
from unit_jax.training import optimizer as optim

# Names and shapes of two of the reference's state dicts: [name, shape, dtype, canonical name].
CASES = REFERENCE_FILES / "parity"
STATE_DICTS = {
    "shared": CASES / "tiny_f64.npz",
    "pre_norm": CASES / "variant_pre_norm.npz",
}
# Of the paper's model (all_8_datasets/shared_dec), as the reference's full-size cases list them:
# {"state_dict": [[name, shape], ...], "params": [[name, shape, trainable], ...]}.
PAPER_NAMES = REFERENCE_FILES / "mmf_names.json.xz"


def reference_state(case: str) -> dict[str, np.ndarray]:
    """A state dict as the reference has it, with numbers of our own; aliases share them."""
    state, rng = {}, np.random.default_rng(0)
    with np.load(STATE_DICTS[case]) as file:
        listed = json.loads(str(file["state_dict"]))
    for name, shape, dtype, canonical in listed:
        if name.endswith("position_ids"):
            state[name] = np.arange(shape[1], dtype=np.int64)[None]
        elif name.endswith("empty_weight"):
            state[name] = np.float32([1] * (shape[0] - 1) + [0.1])
        elif canonical in state:
            state[name] = state[canonical]
        else:
            state[name] = rng.standard_normal(shape, np.float32)
        assert str(state[name].dtype) == dtype
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return reference_state("shared")


@pytest.fixture(scope="module")
def expected(state) -> dict[str, np.ndarray]:
    return mmf.to_ours_partly(state)[0]


@pytest.mark.parametrize("case", STATE_DICTS)
def test_export_undoes_import_to_the_bit(case):
    state = reference_state(case)
    ours, unknown = mmf.to_ours_partly(state)
    assert not unknown
    back = mmf.export_state(mmf.import_state(state, ours))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        assert back[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("variant", "entries"), [("", 1612), ("no_task_embedding", 1610), ("separate_decoders", 1502)]
)
def test_every_parameter_of_the_papers_models_has_a_name(variant, entries):
    settings = settings_lib.from_config(unit.values(variant))
    _, params, statistics = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))
    )
    paths = {**params, **statistics}
    state = mmf.export_state(
        {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in paths.items()}
    )
    assert len(state) == entries
    assert mmf.import_state(state, paths).keys() == paths.keys()


def test_our_parameters_cover_the_references_one_to_one():
    names = json.loads(lzma.decompress(PAPER_NAMES.read_bytes()))
    settings = settings_lib.from_config(unit.values())
    _, params, statistics = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))
    )
    assert sum(math.prod(leaf.shape) for leaf in params.values()) == 201_507_900
    frozen = optim.Optimizer(settings.optimizer, 1).is_frozen
    trainable = {path for path in params if not frozen(path)}
    assert sum(math.prod(params[path].shape) for path in trainable) == 201_285_500

    covered = [path for name, *_ in names["params"] for path in mmf.RULES.paths(name)]
    assert len(covered) == len(set(covered)) and set(covered) == set(params)
    for name, _, learns in names["params"]:
        assert {path in trainable for path in mmf.RULES.paths(name)} == {learns}, name

    def stand_ins(leaves):
        return {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in leaves.items()}

    ours = {name: array.shape for name, array in mmf.to_mmf(stand_ins(params)).items()}
    assert ours == {name: tuple(shape) for name, shape, _ in names["params"]}
    state = mmf.export_state(stand_ins({**params, **statistics}))
    assert {name: array.shape for name, array in state.items()} == {
        name: tuple(shape) for name, shape in names["state_dict"]
    }


def test_layouts(state):
    ours = mmf.import_state(state, mmf.to_ours_partly(state)[0])
    body = "unit_base_model.backbone.0.body."
    kernel = state[body + "layer2.0.conv2.weight"]  # out, in, h, w
    assert ours["backbone.layer2.0.conv2.kernel"][2, 1, 5, 7] == kernel[7, 5, 2, 1]
    assert ours["backbone.layer2.0.shortcut_bn.var"] is not None
    fused = state["unit_base_model.transformer.encoder.layers.1.self_attn.in_proj_weight"]
    width = fused.shape[1]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(
            ours[f"image_encoder.layers.1.attention.{part}.kernel"],
            fused[i * width : (i + 1) * width].T,
        )
    np.testing.assert_array_equal(
        ours["image_encoder.input_projection.kernel"],
        state["unit_base_model.input_proj.weight"][:, :, 0, 0].T,
    )
    np.testing.assert_array_equal(
        ours["heads.snli_ve.labels.bias"], state["classifiers.vl.visual_entailment.1.bias"]
    )


def test_old_spellings_and_wrappers_are_understood(state, expected):
    renamed = {
        "module." + name.replace("unit_base_model.", "detr_model."): array
        for name, array in state.items()
    }
    ours = mmf.import_state(renamed, expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array)


def test_aliases_alone_are_enough(state, expected):
    """Either name of BERT's embeddings will do."""
    without = {
        name: array
        for name, array in state.items()
        if not name.startswith("bert_model.module.embeddings.")
    }
    ours = mmf.import_state(without, expected)
    np.testing.assert_array_equal(
        ours["text_encoder.word_embedding"], expected["text_encoder.word_embedding"]
    )


def test_contradicting_aliases_are_an_error(state, expected):
    name = "unit_base_model.transformer.decoders.vl.vqa2.norm.bias"
    with pytest.raises(ValueError, match=f"{name} and .*transformer.decoder.norm.bias are one"):
        mmf.import_state({**state, name: state[name] + 1}, expected)


def test_everything_that_is_wrong_is_listed_at_once(state, expected):
    broken = {name: array for name, array in state.items() if name != "bert_projection.bias"}
    broken["heads.other.weight"] = np.zeros(3, np.float32)
    broken["class_embeds.detection_coco.weight"] = np.zeros((7, 48), np.float32)
    fewer = {path: array for path, array in expected.items() if path != "queries.sst2"}
    with pytest.raises(ValueError) as error:
        mmf.import_state(broken, fewer)
    message = str(error.value)
    assert "missing: bert_projection.bias (our text_encoder.memory_projection.bias)" in message
    assert "unexpected: heads.other.weight" in message
    assert "unexpected: unit_base_model.query_embeds.glue.glue_sst2.weight" in message
    assert (
        "class_embeds.detection_coco.weight (our heads.coco.classes.kernel): (48, 7), "
        "the model has (48, 12)" in message
    )
    assert len(message.splitlines()) == 5


def test_shapes_that_no_layout_has_are_listed(state, expected):
    name = "unit_base_model.transformer.encoder.layers.0.self_attn.in_proj_bias"
    pointwise = "unit_base_model.input_proj.weight"
    broken = {**state, name: np.zeros(97), pointwise: np.zeros((32, 2048, 3, 3))}
    with pytest.raises(ValueError, match="in_proj_bias: .*97") as error:
        mmf.import_state(broken, expected)
    assert pointwise in str(error.value)


def test_tasks_without_a_name_in_mmf_cannot_be_exported():
    with pytest.raises(ValueError, match="does not have .*\n  queries.nlvr2"):
        mmf.to_mmf({"queries.nlvr2": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="not tensors of UniT:\n  encoder.weight"):
        mmf.to_ours({"encoder.weight": np.zeros(2)})
    with pytest.raises(ValueError, match="not a whole UniT"):
        mmf.export_state({"decoder.norm.bias": np.zeros(2)})


def test_half_a_fused_tensor_cannot_be_exported():
    part = "image_encoder.layers.0.attention.query.bias"
    with pytest.raises(ValueError, match="attention.key.bias, .*attention.value.bias"):
        mmf.to_mmf({part: np.zeros(4)})


def test_rules_fill_numbers_in_order():
    table = rules.RuleTable([rules.Rule("a.#.b1.#", "x#.y.#", rules.LINEAR)])
    assert table.paths("a.3.b1.12.weight") == ("x3.y.12.kernel",)
    assert table.name("x3.y.12.bias") == "a.3.b1.12.bias"
    assert table.paths("a.3.b2.12.weight") == () and table.name("x3.y.z.bias") is None
