"""The rows of the paper's tables and the reference's thirteen configurations, as runs of ours.

Figures "reference" are those of the models that the reference published, on validation data.
Figures "paper" are the paper's, **from memory**: its text was not at hand when they were written
down. What is not known is left out: figures of the ablations and of pairs of data sets, and for how
long tasks were trained that have no configuration in the reference (they get the single-task runs'
150,000 updates).
"""

import dataclasses
from collections.abc import Iterable, Mapping

ALL = ("coco", "visual_genome", "vqa2", "snli_ve", "qnli", "mnli", "qqp", "sst2")
HEADLINES = {
    "coco": "AP",
    "visual_genome": "AP",
    "vqa2": "vqa_accuracy",
    **dict.fromkeys(ALL[3:], "accuracy"),
}
# Steps of the demo's rows that stand for the paper's 500,000; the others are as much shorter.
DEMO_STEPS = 2500


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
      name: of the row, and of its working folder.
      title: what it is, for people.
      tasks: that it learns.
      variants: arguments of configs/unit.py beside the tasks.
      steps: updates.
      optimizer: `adam_w`, or `adam_w_skip_zero_grad`.
      configuration: its number among the reference's thirteen; 0 = none of them.
      needs: the row that it starts from.
      parameters: of the model, at the published numbers of labels.
      reference, paper: published figures in percent by task.
      demo: settings of the demo's run in place of `variants` that the demo's sizes do not know.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    steps: int
    parameters: int
    variants: tuple[str, ...] = ()
    optimizer: str = "adam_w"
    configuration: int = 0
    needs: str = ""
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    demo: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def argument(self) -> str:
        """The argument of configs/unit.py that makes this row."""
        tasks = () if self.tasks == ALL else self.tasks
        return ",".join((*tasks, *self.variants))

    @property
    def demo_argument(self) -> str:
        """The argument of configs/demo.py that makes this row at the demo's size."""
        tasks = () if self.tasks == ALL else self.tasks
        return ",".join((*tasks, *(word for word in self.variants if "=" not in word)))

    @property
    def demo_steps(self) -> int:
        return self.steps * DEMO_STEPS // 500_000


def _figures(*values: float, tasks: tuple[str, ...] = ALL) -> dict[str, float]:
    return dict(zip(tasks, values, strict=True))


# Order of the paper's table of all eight: COCO, VG, VQAv2, SNLI-VE, QNLI, MNLI-mm, QQP, SST-2.
SINGLE = _figures(40.6, 3.87, 66.38, 70.52, 91.62, 84.23, 91.18, 91.63)
FINETUNED = _figures(42.3, 4.68, 67.60, 72.56, 86.92, 81.53, 90.57, 88.06)
SHARED_COCO_INIT = _figures(38.99, 3.29, 66.96, 73.16, 87.90, 80.90, 90.65, 89.22)
NO_EMBEDDING = _figures(38.47, 3.31, 68.25, 74.07, 88.15, 80.61, 90.61, 88.50)
THREE = ALL[:3]
ABLATED = ("coco", "snli_ve", "mnli")
_SKIP = "adam_w_skip_zero_grad"

SINGLE_PARAMETERS = dict(
    coco=191_790_880,
    visual_genome=194_092_695,
    vqa2=193_476_601,
    snli_ve=191_072_707,
    qnli=191_071_938,
    mnli=191_072_707,
    qqp=191_071_938,
    sst2=191_071_938,
)


def _singles() -> Iterable[Row]:
    configurations = dict(coco=1, visual_genome=2, vqa2=3)
    for task in ALL:
        yield Row(
            task, f"{task} alone", (task,), 150_000, SINGLE_PARAMETERS[task],
            configuration=configurations.get(task, 0), paper={task: SINGLE[task]},
            reference={"coco": 40.54} if task == "coco" else {},
        )  # fmt: skip
    yield Row(
        "coco_no_task_embedding", "coco alone, no task embedding", ("coco",), 150_000,
        191_528_736, ("no_task_embedding",), configuration=12, reference={"coco": 40.15},
    )  # fmt: skip


def _few() -> Iterable[Row]:
    pairs = (
        ("coco_vqa2", ("coco", "vqa2"), 4, 194_808_409, 242_077_273),
        ("visual_genome_vqa2", ("visual_genome", "vqa2"), 6, 197_110_224, 244_379_088),
        ("coco_visual_genome_vqa2", THREE, 8, 198_442_032, 292_979_760),
    )
    for name, tasks, number, shared, separate in pairs:
        three = tasks == THREE
        title, steps = " + ".join(tasks), 150_000 * len(tasks)
        yield Row(
            f"{name}_separate", f"{title}, separate decoders", tasks, steps, separate,
            ("separate_decoders",), configuration=number + 1,
            paper=_figures(40.8, 3.91, 68.84, tasks=THREE) if three else {},
        )  # fmt: skip
        yield Row(
            f"{name}_shared", f"{title}, shared decoder", tasks, steps, shared,
            optimizer=_SKIP, configuration=number,
            paper=_figures(37.2, 4.05, 68.79, tasks=THREE) if three else {},
        )  # fmt: skip
    yield Row(
        f"{name}_shared_coco_init", f"{title}, shared decoder, COCO init", tasks, steps, shared,
        optimizer=_SKIP, needs="coco", paper=_figures(40.8, 4.53, 67.30, tasks=THREE),
    )  # fmt: skip


def _eight() -> Iterable[Row]:
    shared, separate, steps = 201_507_900, 532_389_948, 500_000
    yield Row(
        "all_8_separate", "all 8, separate decoders", ALL, steps, separate,
        ("separate_decoders",), configuration=11,
        paper=_figures(32.2, 2.54, 67.38, 74.31, 87.68, 81.76, 90.44, 89.40),
    )  # fmt: skip
    yield Row(
        "all_8_shared", "all 8, shared decoder", ALL, steps, shared, configuration=10,
        paper=_figures(33.8, 2.69, 67.36, 74.14, 87.99, 81.40, 90.62, 89.40),
    )  # fmt: skip
    yield Row(
        "all_8_separate_coco_init", "all 8, separate decoders, COCO init", ALL, steps, separate,
        ("separate_decoders",), needs="coco",
        paper=_figures(38.9, 3.22, 67.58, 74.20, 87.99, 81.33, 90.61, 89.17),
    )  # fmt: skip
    yield Row(
        "all_8_shared_coco_init", "all 8, shared decoder, COCO init", ALL, steps, shared,
        needs="coco", reference=SHARED_COCO_INIT,
        paper=_figures(39.0, 3.29, 66.97, 73.16, 87.95, 80.91, 90.64, 89.29),
    )  # fmt: skip
    yield Row(
        "all_8_shared_no_task_embedding", "all 8, shared decoder, no task embedding", ALL, steps,
        201_245_756, ("no_task_embedding",), configuration=13,
    )  # fmt: skip
    yield Row(
        "all_8_shared_no_task_embedding_coco_init",
        "all 8, shared decoder, no task embedding, COCO init", ALL, steps, 201_245_756,
        ("no_task_embedding",), needs="coco_no_task_embedding", reference=NO_EMBEDDING,
    )  # fmt: skip
    for task in ALL:
        yield Row(
            f"finetuned_{task}", f"all 8 with COCO init, then {task} alone", (task,), 150_000,
            SINGLE_PARAMETERS[task], needs="all_8_shared_coco_init",
            paper={task: FINETUNED[task]},
        )  # fmt: skip


def _ablations() -> Iterable[Row]:
    """One change each, on COCO, SNLI-VE and MNLI together."""
    base = 193_018_150
    changes = (
        ("default", (), base, {}),
        ("8_decoder_layers", ("decoder_layers=8",), 208_773_926, {"model.decoder.layers": 4}),
        ("12_decoder_layers", ("decoder_layers=12",), 240_285_478, {"model.decoder.layers": 6}),
        ("decoder_width_256", ("decoder_width=256",), 151_809_830, {"model.decoder.width": 64}),
        ("all_bert_states", ("all_bert_states",), base, {}),
        ("loss_on_all_layers", ("loss_on_all_layers",), base, {}),
        ("no_task_embedding", ("no_task_embedding",), 192_756_006, {}),
        ("batch_size_32", ("batch_size=32",), base, {"train.batch_size": 16}),
    )
    for name, variants, parameters, demo in changes:
        yield Row(
            f"ablation_{name}", f"ablation: {name.replace('_', ' ')}", ABLATED, 450_000,
            parameters, variants, optimizer=_SKIP, demo=demo,
        )  # fmt: skip


ROWS: Mapping[str, Row] = {
    row.name: row for group in (_singles(), _few(), _eight(), _ablations()) for row in group
}


def find(name: str) -> Row:
    """The row of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in ROWS:
        raise ValueError(f"there is no row {name!r}; --list shows them: {', '.join(ROWS)}")
    return ROWS[name]


def with_needs(names: Iterable[str]) -> list[Row]:
    """Rows, each after the one that it starts from, each once."""
    ordered: dict[str, Row] = {}
    for name in names:
        chain = [find(name)]
        while chain[-1].needs:
            chain.append(find(chain[-1].needs))
        for row in reversed(chain):
            ordered.setdefault(row.name, row)
    return list(ordered.values())
