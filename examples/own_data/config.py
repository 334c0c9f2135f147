"""Road signs on pictures and stars of reviews: two data sets of one's own, one model."""

from unit_jax.configs import demo


def get_config():
    config = demo.get_config()
    config.tasks = {}
    config.data.data_dir = "runs/own_data"
    config.data.own = {
        "signs": {"format": "coco", "train": "signs/train.json", "val": "signs/val.json"},
        "reviews": {"format": "table", "train": "reviews.csv", "text": "review", "label": "stars"},
    }
    return config
