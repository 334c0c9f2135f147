"""Road signs on pictures and stars of reviews: two data sets of one's own, one model."""

from unit_jax.configs import fine_tune

DATA = {
    "signs": {"format": "coco", "train": "signs/train.json", "val": "signs/val.json"},
    "reviews": {"format": "table", "train": "reviews.csv", "text": "review", "label": "stars"},
}


def get_config():
    return fine_tune.recipe(start="demo", data=DATA, epochs=30)
