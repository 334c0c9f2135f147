"""What can be had without looking: majority answers, untrained models, exchanged images, words.

A model that does not beat these has not understood the picture, or the pair of texts.
"""

from collections.abc import Iterable

from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.data.text import Tokenizer
from unit_jax.evaluation import blind
from unit_jax.evaluation.evaluate import evaluate, predict_split, score
from unit_jax.evaluation.step import Predictor
from unit_jax.tasks import TaskSpec


def baselines(
    run: run_lib.Run, predictor: Predictor, split: str, tasks: Iterable[str]
) -> dict[str, float]:
    """Every metric of an answer that looks at nothing: the training set's best constant answer,
    or, where there is none (detection), of an untrained model."""
    values, without = {}, []
    for task in tasks:
        spec = run.settings.tasks[task]
        examples, train = run.data.split(task, split), run.data.split(task, "train")
        constant = outputs.room(spec).constant(train, len(examples), run.data.names(task))
        if constant is None:
            without.append(task)
            continue
        for name, value in score(run, task, split, constant).items():
            values[f"{task}/{name}"] = value
    if without:
        untrained = predictor.of(run.fresh_model())
        values |= evaluate(run, untrained, split, tuple(without)).metrics
    return values


def blind_scores(
    run: run_lib.Run, predictor: Predictor, spec: TaskSpec, split: str
) -> dict[str, float]:
    """The headline metric with images exchanged between examples, and of a bag of words on the
    text alone (of pairs: on the second text)."""
    room, names = outputs.room(spec), run.data.names(spec.name)
    examples, train = run.data.split(spec.name, split), run.data.split(spec.name, "train")
    scores = {}
    if spec.has_image and spec.has_text:
        scores["images_exchanged"] = predict_split(
            run, predictor, spec.name, split, exchange_images=True
        )
    train_scores = room.label_scores(train, names) if spec.has_text else None
    if train_scores is not None:
        field = "text" if spec.has_image else "text_b"
        tokenizer = Tokenizer(run.data.vocabulary_path)
        length = run.settings.model.text_encoder.max_positions
        words = [_words(tokenizer, of, field, length) for of in (train, examples)]
        if all(words[0]):  # one text only has no second
            name = "bag_of_words" if spec.has_image else "bag_of_words_second_text"
            logits = blind.bag_of_words(words[0], train_scores.toarray(), words[1], tokenizer.size)
            scores[name] = room.from_logits(logits)
    return {
        name: room.metrics(predictions, examples, names)[room.headline]
        for name, predictions in scores.items()
    }


def _words(tokenizer: Tokenizer, examples, field: str, max_tokens: int) -> list[list[int]]:
    """Token ids of one text of each example."""
    texts = [examples[row][field] for row in range(len(examples))]
    encoded = tokenizer.encode(texts, None, max_tokens)
    return [ids.tolist() if text else [] for (ids, _), text in zip(encoded, texts, strict=True)]
